"""The atrous ResNet: torchvision's names and shapes, one function at every output stride."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from personlab.model.backbones.resnet import ResNet
from personlab.params import BackboneKind

BACKBONES: tuple[BackboneKind, ...] = ("resnet18", "resnet50", "resnet101", "resnet152")
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norm(prefix: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{name}": (channels,) for name in BATCH_NORM[:-1]} | {
        f"{prefix}.num_batches_tracked": ()
    }


def torchvisions(blocks: tuple[int, ...], *, bottleneck: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's ResNet without fc, by one rule per block."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    inputs = 64
    for layer, (planes, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), start=1):
        outputs = 4 * planes if bottleneck else planes
        for block in range(count):
            at = f"layer{layer}.{block}"
            sizes = [(planes, inputs, 3), (planes, planes, 3)]
            if bottleneck:
                sizes = [(planes, inputs, 1), (planes, planes, 3), (outputs, planes, 1)]
            for number, (after, before, side) in enumerate(sizes, start=1):
                shapes[f"{at}.conv{number}.weight"] = (after, before, side, side)
                shapes |= norm(f"{at}.bn{number}", after)
            if block == 0 and inputs != outputs:
                shapes[f"{at}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                shapes |= norm(f"{at}.downsample.1", outputs)
            inputs = outputs
    return shapes


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def small(backbone: BackboneKind, stride: int, *, like: ResNet | None = None) -> ResNet:
    """A narrow network in double precision with lively normalisation statistics."""
    torch.manual_seed(0)
    network = ResNet(backbone, width=4, output_stride=stride).double().eval()
    if like is not None:
        network.load_state_dict(like.state_dict())
        return network
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network


def test_names_and_shapes_are_torchvisions() -> None:
    with torch.device("meta"):
        assert shapes(ResNet("resnet18")) == torchvisions((2, 2, 2, 2), bottleneck=False)
        assert shapes(ResNet("resnet50")) == torchvisions((3, 4, 6, 3), bottleneck=True)


@pytest.mark.parametrize(
    ("backbone", "parameters", "entries"),
    [
        ("resnet18", 11_689_512, 122),
        ("resnet50", 25_557_032, 320),
        ("resnet101", 44_549_160, 626),
        ("resnet152", 60_192_808, 932),
    ],
)
def test_parameter_counts_are_torchvisions(backbone: BackboneKind, parameters: int, entries: int) -> None:
    with torch.device("meta"):
        network = ResNet(backbone)
    classifier = 1000 * network.channels[1] + 1000
    assert sum(p.numel() for p in network.parameters()) + classifier == parameters
    assert len(network.state_dict()) + 2 == entries


@pytest.mark.parametrize("backbone", BACKBONES)
def test_at_its_own_stride_it_strides_where_torchvision_does(backbone: BackboneKind) -> None:
    with torch.device("meta"):
        network = ResNet(backbone)
    strided = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)}
    convolution = "conv1" if backbone == "resnet18" else "conv2"
    stages = ("layer2", "layer3", "layer4")
    assert strided == {"conv1"} | {f"{s}.0.{c}" for s in stages for c in (convolution, "downsample.0")}
    assert all(m.dilation == (1, 1) for m in network.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_output_shapes(backbone: BackboneKind, stride: int) -> None:
    network = ResNet(backbone, width=8, output_stride=stride).eval()
    middle, final = network(torch.zeros(2, 3, 65, 97))
    assert middle.shape == (2, network.channels[0], 64 // stride + 1, 96 // stride + 1)
    assert final.shape == (2, network.channels[1], 64 // stride + 1, 96 // stride + 1)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(BACKBONES[:3]),
    st.sampled_from([(8, 16), (8, 32), (16, 32)]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
def test_every_second_cell_of_a_dense_output_is_the_sparse_output(
    backbone: BackboneKind, strides: tuple[int, int], rows: int, columns: int, seed: int
) -> None:
    dense_stride, sparse_stride = strides
    sparse = small(backbone, sparse_stride)
    dense = small(backbone, dense_stride, like=sparse)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, 3, 32 * rows + 1, 32 * columns + 1, generator=generator, dtype=torch.float64)
    step = sparse_stride // dense_stride
    with torch.no_grad():
        for more, fewer in zip(dense(images), sparse(images), strict=True):
            torch.testing.assert_close(more[..., ::step, ::step], fewer, rtol=1e-9, atol=1e-9)
            assert fewer.std() > 1e-3


def test_frozen_statistics_do_not_change_but_scale_and_bias_learn() -> None:
    torch.manual_seed(0)
    network = ResNet("resnet18", width=4, output_stride=16, freeze_bn=True).train()
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    images = torch.randn(2, 3, 33, 33)
    trained = network(images)[1]
    trained.square().sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.named_buffers())
    assert network.training
    assert network.bn1.weight.grad is not None
    assert network.bn1.weight.grad.abs().sum() > 0
    torch.testing.assert_close(network.eval()(images)[1], trained)


def test_statistics_train_unless_frozen() -> None:
    network = ResNet("resnet18", width=4, output_stride=16).train()
    before = network.bn1.running_mean.clone()
    network(torch.randn(2, 3, 33, 33))
    assert not torch.equal(network.bn1.running_mean, before)
