"""The network: shapes, units, initialisation, and rebuilding it from a checkpoint alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from personlab import params
from personlab.codec.fields import FIELDS, Fields
from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.model.backbones.resnet import ResNet
from personlab.model.network import Heads, PersonLab, build, from_checkpoint
from personlab.skeleton import COCO_PERSON, Skeleton
from tests.coco_person import E, K
from tests.conftest import ROOT
from tests.reference.scenes import image

MODEL = params.Model(backbone="resnet18", width=8)


def network(stride: params.Stride = 16, model: params.Model = MODEL) -> PersonLab:
    torch.manual_seed(0)
    return build(model, stride=stride, skeleton=COCO_PERSON)


def lively(made: PersonLab) -> PersonLab:
    """Heads with weights large enough that outputs differ visibly."""
    for name, parameter in made.named_parameters():
        if "heads" in name or "intermediate" in name:
            nn.init.normal_(parameter, std=0.1)
    return made


def images(height: int = 65, width: int = 97, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)


def assert_same(found: Fields, expected: Fields, **tolerance: float) -> None:
    for name, tensor in found.tensors().items():
        torch.testing.assert_close(tensor, expected.tensors()[name], **tolerance)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_shapes(stride: params.Stride) -> None:
    height, width = 64 // stride + 1, 96 // stride + 1
    for fields in network(stride).forward_training(images()):
        assert fields.stride == stride
        assert fields.heatmap.shape == (2, K, height, width)
        assert fields.short.shape == (2, K, 2, height, width)
        assert fields.mid.shape == (2, E, 2, height, width)
        assert fields.seg.shape == (2, height, width)
        assert fields.long.shape == (2, K, 2, height, width)
        assert all(t.is_contiguous() and t.dtype == torch.float32 for t in fields.tensors().values())


def test_inference_runs_the_final_heads_alone() -> None:
    made = lively(network()).eval()
    final, middle = made.forward_training(images())
    fields = made(images())
    assert_same(fields, final, rtol=0, atol=0)
    assert not torch.allclose(fields.heatmap, middle.heatmap, atol=1e-3)
    made.intermediate = None  # not needed
    assert_same(made(images()), fields, rtol=0, atol=0)


def test_bytes_and_floats_are_the_same_images() -> None:
    made = lively(network()).eval()
    assert_same(made(images()), made(images().float()), rtol=0, atol=0)


def test_images_are_normalised_as_imagenet_weights_expect() -> None:
    made = network()
    pixels = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1) * 255
    seen = []
    made.backbone.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made((pixels + 2 * deviation).expand(1, 3, 33, 33))
    torch.testing.assert_close(seen[0], torch.full((1, 3, 33, 33), 2.0))


def test_a_batch_is_its_images() -> None:
    made = lively(network()).eval()
    together = made(images())
    for index in range(2):
        assert_same(made(images()[index : index + 1]), image(together, index), rtol=1e-4, atol=2e-3)


def test_sides_must_be_whole_strides_plus_one() -> None:
    with pytest.raises(ValueError, match=r"64 is not 16 \* n \+ 1"):
        network(16)(images(65, 64))


def test_offset_heads_work_in_units_of_the_radius() -> None:
    torch.manual_seed(0)
    heads = Heads(8, 20.0, COCO_PERSON)
    features = torch.randn(1, 8, 2, 3)
    fields = heads(features, 8)
    raw = {name: head(features) for name, head in heads.items()}
    for k in range(K):
        for axis in range(2):
            torch.testing.assert_close(fields.short[:, k, axis], 20 * raw["short"][:, 2 * k + axis])
            torch.testing.assert_close(fields.long[:, k, axis], 20 * raw["long"][:, 2 * k + axis])
    for e in range(E):
        torch.testing.assert_close(fields.mid[:, e, 1], 20 * raw["mid"][:, 2 * e + 1])
    torch.testing.assert_close(fields.heatmap, raw["heatmap"])
    torch.testing.assert_close(fields.seg, raw["seg"][:, 0])


def test_training_starts_calm() -> None:
    fields, middle = network().forward_training(images())
    for found in (fields, middle):
        torch.testing.assert_close(
            found.heatmap.sigmoid(), torch.full_like(found.heatmap, 0.02), rtol=0, atol=5e-3
        )
        assert all(getattr(found, name).abs().max() < 5 for name in ("seg", "short", "mid", "long"))


def test_heads_stay_exact_under_autocast() -> None:
    made = lively(network()).eval()
    with torch.autocast("cpu", torch.bfloat16):
        fields = made(images())
    assert fields.long.dtype == torch.float32
    assert not torch.equal(fields.long, fields.long.bfloat16().float())


def test_one_set_of_weights_at_every_stride() -> None:
    sparse, dense = lively(network(16)).eval(), network(8).eval()
    dense.load_state_dict(sparse.state_dict())
    for fine, coarse in zip(dense.forward_training(images()), sparse.forward_training(images()), strict=True):
        for name, tensor in coarse.tensors().items():
            torch.testing.assert_close(fine.tensors()[name][..., ::2, ::2], tensor, rtol=1e-4, atol=2e-3)


def test_a_checkpoint_alone_rebuilds_the_network(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = params.Model(backbone="resnet50", width=4, radius=12.0, refine=False)
    made = lively(network(16, model)).eval()
    checkpoint.save(path, made.state_dict(), made.card({"steps": 10, "data": "abc"}))
    rebuilt = from_checkpoint(path, stride=16)
    assert not rebuilt.training
    assert (rebuilt.model, rebuilt.decode) == (made.model, None)
    assert_same(rebuilt(images()), made(images()), rtol=0, atol=0)
    assert from_checkpoint(path, stride=8)(images()).stride == 8
    assert json.loads(path.with_suffix(".json").read_text())["training"] == {"steps": 10, "data": "abc"}


def test_a_judged_checkpoint_says_how_it_is_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path, network(), decode={"nms": "hard", "bin": 1.0, "a_later_key": 1})
    assert from_checkpoint(path, stride=16).decode == params.Decode(nms="hard", bin=1.0, extensions=())


def test_a_checkpoint_of_version_0_1_is_read_with_its_decoding() -> None:
    network = from_checkpoint(ROOT / "tests/fixtures/v0.1/model.safetensors", stride=16)
    assert network.model == params.Model(width=1, radius=12.0)
    assert network.decode == params.Decode(nms_radius=5.0, bin=1.0, extensions=())


def test_the_state_holds_the_weights_and_nothing_else() -> None:
    names = {name.split(".")[0] for name in network().state_dict()}
    assert names == {"backbone", "heads", "intermediate"}
    assert {n for n in network().state_dict() if n.startswith("heads.")} == {
        f"heads.{field}.{part}" for field in FIELDS for part in ("weight", "bias")
    }


def saved(tmp_path: Path, made: PersonLab, **changes: object) -> Path:
    path = tmp_path / "other.safetensors"
    checkpoint.save(path, made.state_dict(), {**made.card({}), **changes})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "estimator-1"}, "not a PersonLab network"),
        ({"skeleton": {"keypoints": ["nose"], "edges": []}}, "other keypoints"),
        ({"model": {"backbone": "vgg"}}, "does not describe a network"),
        ({"model": None}, "does not describe a network"),
        ({"decode": {"nms": "medium"}}, "does not describe a network"),
        ({"model": {"backbone": "resnet18", "width": 16}}, "misshapen: backbone.conv1.weight"),
    ],
)
def test_a_checkpoint_of_something_else(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = saved(tmp_path, network(), **changes)
    with pytest.raises(UserError, match=message):
        from_checkpoint(path, stride=8)


def test_starting_from_a_checkpoint_takes_the_heads_too(tmp_path: Path) -> None:
    given = lively(network())
    saved(tmp_path, given)
    model = MODEL.model_copy(update={"init": "other.safetensors"})
    made = build(model, stride=8, root=tmp_path, skeleton=COCO_PERSON)
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, given.state_dict()[name])
    assert made.backbone.freeze_bn


def test_starting_from_a_checkpoint_without_its_heads(tmp_path: Path) -> None:
    given, fresh = lively(network()), network()
    saved(tmp_path, given)
    model = MODEL.model_copy(update={"init": "other.safetensors", "init_heads": False})
    torch.manual_seed(0)
    made = build(model, stride=8, root=tmp_path, skeleton=COCO_PERSON)
    for name, tensor in made.state_dict().items():
        expected = given if name.startswith("backbone.") else fresh
        assert torch.equal(tensor, expected.state_dict()[name]), name
    assert made.backbone.freeze_bn


def test_starting_from_another_radius_is_refused_unless_heads_are_left_out(tmp_path: Path) -> None:
    path = saved(tmp_path, network())
    model = MODEL.model_copy(update={"init": str(path), "radius": 10.0})
    with pytest.raises(UserError, match=r"model\.radius 32, not 10.*set model\.init_heads to false"):
        build(model, stride=8, skeleton=COCO_PERSON)
    build(model.model_copy(update={"init_heads": False}), stride=8, skeleton=COCO_PERSON)


HAND = Skeleton("hand", ("wrist", "thumb", "index"), ((0, 1), (0, 2)), flip=None, sigmas=(0.1, 0.1, 0.1))


def test_the_skeleton_decides_the_channels_and_comes_back(tmp_path: Path) -> None:
    made = build(MODEL, stride=16, skeleton=HAND, masks=False)
    fields = made(torch.zeros(1, 3, 33, 33, dtype=torch.uint8))
    assert (fields.heatmap.shape[1], fields.short.shape[1], fields.mid.shape[1]) == (3, 3, 4)
    assert not fields.has_masks
    loaded = from_checkpoint(saved(tmp_path, made), stride=8)
    assert (loaded.skeleton, loaded.masks) == (HAND, False)


def test_starting_from_other_keypoints_takes_the_backbone_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = lively(network())
    model = MODEL.model_copy(update={"init": str(saved(tmp_path, given))})
    made = build(model, stride=8, skeleton=HAND)
    assert "has other keypoints (17 of person: nose, left_eye" in caplog.text
    assert "than the data (3 of hand: wrist, thumb, index): only its backbone is used" in caplog.text
    assert torch.equal(made.backbone.conv1.weight, given.backbone.conv1.weight)


def test_starting_from_the_same_keypoints_in_another_order_takes_the_backbone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tree is the same by name, the channels are not."""
    given = build(MODEL, stride=8, skeleton=HAND)
    model = MODEL.model_copy(update={"init": str(saved(tmp_path, given))})
    swapped = replace(HAND, keypoints=("wrist", "index", "thumb"))
    build(model, stride=8, skeleton=swapped)
    assert "only its backbone is used" in caplog.text


def test_without_masks_the_heads_of_poses_are_taken(tmp_path: Path) -> None:
    given = lively(network())
    model = MODEL.model_copy(update={"init": str(saved(tmp_path, given))})
    made = build(model, stride=8, masks=False, skeleton=COCO_PERSON)
    assert list(made.heads) == ["heatmap", "short", "mid"]
    assert torch.equal(made.heads["mid"].weight, given.heads["mid"].weight)


def torchvision_file(folder: Path, width: int = 8) -> tuple[Path, ResNet]:
    """A ResNet as torchvision keeps it: with its classifier, and (an old file) without batch counts."""
    torch.manual_seed(5)
    given = ResNet("resnet18", width=width)
    state = {n: t for n, t in given.state_dict().items() if not n.endswith("num_batches_tracked")}
    state |= {"fc.weight": torch.zeros(1000, 8 * width), "fc.bias": torch.zeros(1000)}
    path = folder / "resnet18.safetensors"
    safetensors.torch.save_file(state, path)
    return path, given


def test_starting_from_a_torchvision_backbone(tmp_path: Path) -> None:
    path, given = torchvision_file(tmp_path)
    made = build(MODEL.model_copy(update={"init": str(path)}), stride=8, skeleton=COCO_PERSON).train()
    for name, tensor in made.backbone.state_dict().items():
        assert torch.equal(tensor, given.state_dict()[name])
    before = made.backbone.bn1.running_mean.clone()
    made.forward_training(images())
    assert torch.equal(made.backbone.bn1.running_mean, before)


def test_starting_from_weights_that_do_not_fit(tmp_path: Path) -> None:
    path, _ = torchvision_file(tmp_path, width=16)
    with pytest.raises(UserError, match=r"resnet18\.safetensors: the weights do not fit .* misshapen: conv1"):
        build(MODEL.model_copy(update={"init": str(path)}), stride=8, skeleton=COCO_PERSON)
    deeper = MODEL.model_copy(update={"init": str(path), "backbone": "resnet50"})
    with pytest.raises(UserError, match=r"missing: layer1\.0\.conv3\.weight"):
        build(deeper, stride=8, skeleton=COCO_PERSON)
    with pytest.raises(UserError, match="no such file"):
        build(
            MODEL.model_copy(update={"init": "nowhere.safetensors"}),
            stride=8,
            root=tmp_path,
            skeleton=COCO_PERSON,
        )


def test_from_scratch_the_statistics_train() -> None:
    made = network().train()
    before = made.backbone.bn1.running_mean.clone()
    made.forward_training(images())
    assert not torch.equal(made.backbone.bn1.running_mean, before)
