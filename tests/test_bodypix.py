"""Import of BodyPix and PoseNet: same outputs as TensorFlow.js, at every stride; files that are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from personlab import params
from personlab.cli import app
from personlab.codec.decode import Decoder, Level
from personlab.codec.fields import FIELDS, Fields
from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.model.network import PersonLab, build, from_checkpoint
from personlab.params import Stride
from personlab.skeleton import COCO_PERSON
from personlab.weights.bodypix import import_weights
from tests import tfjs_models
from tests.fixtures.make_tfjs_reference import FIXTURES, PUBLISHED, TINY, Published, Tiny, differences, ours


def reference(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz") as heads:
        return dict(heads)


def imported(tmp_path: Path, model: tfjs_models.Model) -> Path:
    out = tmp_path / "imported.safetensors"
    import_weights(str(model.write(tmp_path / "graph")), out, downloads=tmp_path)
    return out


def fields_of(network: PersonLab, height: int = 65, width: int = 97) -> Fields:
    image = torch.from_numpy(tfjs_models.image(height, width)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        fields: Fields = network(image)
    return fields


# --- parity with TensorFlow.js ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_small_networks_are_tensorflows(tmp_path: Path, case: Tiny) -> None:
    expected = reference(case.name)
    found = differences(ours(case.write(tmp_path), case.stride, case.image(), tmp_path), expected)
    assert found.keys() == expected.keys()
    assert max(found.values()) <= 1e-4, found


@pytest.mark.testdata
@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: case.name)
def test_published_networks_are_tensorflows(tmp_path: Path, testdata: Path, case: Published) -> None:
    """Both round to float32: offsets of 100 pixels to some 1e-4 pixels, each in its own way."""
    expected = reference(case.name)
    fields = ours(case.model(testdata, tmp_path), case.stride, case.image(testdata), tmp_path)
    found = differences(fields, expected)
    assert found.keys() == expected.keys()
    for head, difference in found.items():
        assert difference <= 1e-4 + 2e-6 * np.abs(expected[head]).max(), found


# --- one set of weights, every stride -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mobilenet", "mobilenet16", "resnet"])
def test_every_stride_is_every_second_cell_of_the_finer_one(tmp_path: Path, kind: str) -> None:
    model = tfjs_models.resnet(16) if kind == "resnet" else tfjs_models.mobilenet(kind, 16)
    out = imported(tmp_path, model)
    networks = {stride: from_checkpoint(out, stride=stride) for stride in (8, 16, 32)}
    for fine, coarse in ((8, 16), (16, 32)):
        dense, sparse = (fields_of(networks[stride]).tensors() for stride in (fine, coarse))
        middle, _ = networks[coarse].backbone(torch.zeros(1, 3, 65, 97))
        assert middle.shape[-2:] == sparse["heatmap"].shape[-2:]
        for name, tensor in sparse.items():
            torch.testing.assert_close(dense[name][..., ::2, ::2], tensor, rtol=1e-5, atol=1e-4)


def same_padded(side: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """What TensorFlow's SAME pads before and after."""
    total = max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("cells", [2, 3, 8, 51])
def test_every_convolution_pads_as_tensorflow_would(stride: Stride, cells: int) -> None:
    with torch.device("meta"):
        network = PersonLab(params.Model(backbone="mobilenet"), stride=stride, skeleton=COCO_PERSON)
        side = stride * (cells - 1) + 1
        seen = 0

        def check(module: torch.nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
            nonlocal seen
            expected = same_padded(
                inputs[0].shape[-1], module.kernel_size[0], module.stride[0], module.dilation[0]
            )
            assert (module.padding[0], module.padding[0]) == expected
            seen += 1

        for module in network.backbone.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_pre_hook(check)
        network.backbone(torch.zeros(1, 3, side, side))
    assert seen == 27


# --- the checkpoint -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "stride"),
    [("mobilenet", 8), ("mobilenet", 32), ("mobilenet16", 8), ("resnet", 8), ("resnet", 32)],
)
def test_the_checkpoint_is_the_same_for_every_published_stride(
    tmp_path: Path, kind: str, stride: int
) -> None:
    def make(at: int) -> tfjs_models.Model:
        return tfjs_models.resnet(at) if kind == "resnet" else tfjs_models.mobilenet(kind, at)

    assert (
        imported(tmp_path / "a", make(stride)).read_bytes() == imported(tmp_path / "b", make(16)).read_bytes()
    )


def test_float16_weights_give_the_network_of_the_rounded_weights(tmp_path: Path) -> None:
    rounded, half = (tfjs_models.mobilenet("mobilenet16", 16) for _ in range(2))
    for name, value in rounded.weights.items():
        rounded.weights[name] = value.astype(np.float16).astype(np.float32)
    half.quantised = "float16"
    out = imported(tmp_path / "half", half)
    assert out.read_bytes() == imported(tmp_path / "rounded", rounded).read_bytes()
    assert json.loads(out.with_suffix(".json").read_text())["training"]["weights"] == "float16"


def test_the_card_has_the_provenance(tmp_path: Path) -> None:
    out = imported(tmp_path, tfjs_models.mobilenet("mobilenet16", 16, width=24))
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["model"]["backbone"] == "mobilenet16"
    assert card["fields"] == list(FIELDS)
    assert card["training"] == {
        "source": "graph/model-stride16.json",
        "licence": "Apache-2.0, as published by Google",
        "architecture": "BodyPix MobileNetV1 0.75",
        "weights": "float32",
        "normalisation": {"mean": [127.5] * 3, "std": [127.5] * 3},
        "dropped": ["part_heatmap_2", "part_offset_2"],
    }


@pytest.mark.parametrize("kind", ["mobilenet16", "resnet"])
def test_training_starts_from_it_without_random_heads(tmp_path: Path, kind: str) -> None:
    tiny = tfjs_models.resnet(16) if kind == "resnet" else tfjs_models.mobilenet(kind, 16)
    out = imported(tmp_path, tiny)
    backbone: params.BackboneKind = "slim-resnet50" if kind == "resnet" else "mobilenet16"
    model = params.Model(backbone=backbone, width=2, init=str(out))
    made = build(model, stride=16, skeleton=COCO_PERSON)
    state, given = made.state_dict(), checkpoint.load_weights(out)
    assert state.keys() == given.keys()
    assert all(torch.equal(state[name], given[name]) for name in given)
    (fields,) = made.forward_training(torch.zeros(1, 3, 33, 33))
    (fields.heatmap.sum() + fields.long.sum()).backward()
    first = made.backbone.conv1 if kind == "resnet" else made.backbone.conv0
    assert first.weight.grad.abs().max() > 0


def test_some_intermediate_heads_are_not_enough(tmp_path: Path) -> None:
    out = imported(tmp_path, tfjs_models.mobilenet("mobilenet16", 16))
    state, card = checkpoint.load(out)
    checkpoint.save(out, state | {"intermediate.seg.bias": torch.zeros(1)}, card)
    with pytest.raises(UserError, match=r"missing: intermediate\."):
        from_checkpoint(out, stride=16)
    checkpoint.save(out, {n: t for n, t in state.items() if n != "heads.seg.bias"}, card)
    with pytest.raises(UserError, match=r"missing: heads\.seg\.bias"):
        from_checkpoint(out, stride=16)


def test_training_another_architecture_from_it_is_explained(tmp_path: Path) -> None:
    out = imported(tmp_path, tfjs_models.mobilenet("mobilenet16", 16))
    with pytest.raises(UserError, match="a mobilenet16 of width 2, not a resnet18 of width 32: set model"):
        build(params.Model(init=str(out)), stride=16, skeleton=COCO_PERSON)


def test_the_command_line_imports(tmp_path: Path) -> None:
    path = tfjs_models.mobilenet("mobilenet16", 16).write(tmp_path / "graph")
    out = tmp_path / "net.safetensors"
    app(["import-weights", str(path), "--out", str(out)], result_action="return_value")
    assert from_checkpoint(out, stride=8).masks
    with pytest.raises(UserError, match=r"written as \.onnx"):
        app(["export", str(out), "--out", str(tmp_path / "net.pb")], result_action="return_value")


# --- poses only ---------------------------------------------------------------------------------------------


def posenet(tmp_path: Path) -> Path:
    return imported(tmp_path, tfjs_models.mobilenet("mobilenet16", 16, heads=tfjs_models.POSE_HEADS))


def test_posenet_has_poses_and_no_masks(tmp_path: Path) -> None:
    network = from_checkpoint(posenet(tmp_path), stride=16)
    fields = fields_of(network).probabilities()
    assert not network.masks
    assert not fields.has_masks
    assert fields.heatmap.shape == (1, 17, 5, 7)
    assert (fields.seg.shape, fields.long.shape) == ((1, 0, 0), (1, 17, 2, 0, 0))
    card = json.loads((tmp_path / "imported.json").read_text())
    assert card["fields"] == ["heatmap", "short", "mid"]
    assert card["training"]["architecture"].startswith("PoseNet")


def test_posenets_poses_are_decoded_and_masks_refused(tmp_path: Path) -> None:
    levels = [Level(fields_of(from_checkpoint(posenet(tmp_path), stride=16)).probabilities(), 1.0)]
    decoder = Decoder()
    found = decoder.poses(levels, height=65, width=97)
    assert len(found.scores) > 0
    with pytest.raises(UserError, match="poses only"):
        next(decoder.masks(levels, found, height=65, width=97))


def test_training_needs_masks(tmp_path: Path) -> None:
    model = params.Model(backbone="mobilenet16", width=2, init=str(posenet(tmp_path)))
    with pytest.raises(UserError, match="finds poses only"):
        build(model, stride=16, skeleton=COCO_PERSON)


def test_a_card_with_other_fields_is_refused(tmp_path: Path) -> None:
    out = posenet(tmp_path)
    state, card = checkpoint.load(out)
    checkpoint.save(out, state, card | {"fields": ["heatmap", "seg"]})
    with pytest.raises(UserError, match=r"fields \['heatmap', 'seg'\]"):
        from_checkpoint(out, stride=16)


# --- refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Conv2d_5_pointwise/weights", "missing: Conv2d_5_pointwise/weights"),
        ("Conv2d_13_depthwise/depthwise_bias", "missing: Conv2d_13_depthwise/depthwise_bias"),
        ("displacement_bwd_2/weights", "missing: displacement_bwd_2/weights"),
        ("embedding_2/weights", "missing: embedding_2/weights"),
        ("segment_2/Conv2D_bias", "missing: segment_2/Conv2D_bias"),
        ("Conv2d_0/weights", "neither a MobileNetV1"),
    ],
)
def test_missing_weights_are_named(tmp_path: Path, name: str, message: str) -> None:
    model = tfjs_models.mobilenet("mobilenet16", 16)
    del model.weights[f"MobilenetV1/{name}"]
    with pytest.raises(UserError, match=message):
        imported(tmp_path, model)


def test_other_networks_are_refused(tmp_path: Path) -> None:
    extra = tfjs_models.mobilenet("mobilenet16", 16)
    extra.weights["MobilenetV1/squeeze/weights"] = np.zeros((1, 1, 2, 2), np.float32)
    with pytest.raises(UserError, match="unknown weights: squeeze/weights"):
        imported(tmp_path, extra)
    strided = tfjs_models.mobilenet("mobilenet16", 16)
    (node,) = (n for n in strided.nodes if n["name"] == "Conv2d_7_depthwise/conv")
    node["attr"]["strides"]["list"]["i"] = ["1", "2", "2", "1"]
    with pytest.raises(UserError, match=r"Conv2d_7_depthwise/depthwise_weights is used with .* \(2, 1\)"):
        imported(tmp_path, strided)
    misshapen = tfjs_models.mobilenet("mobilenet16", 16)
    misshapen.weights["MobilenetV1/heatmap_2/weights"] = np.zeros((1, 1, 32, 5), np.float32)
    with pytest.raises(UserError, match=r"misshapen: heads\.heatmap\.weight \(5, 32, 1, 1\) instead of"):
        imported(tmp_path, misshapen)
    flat = tfjs_models.mobilenet("mobilenet16", 16)
    flat.weights["MobilenetV1/heatmap_2/weights"] = np.zeros((32, 17), np.float32)
    with pytest.raises(UserError, match=r"heatmap_2/weights has shape \(32, 17\)"):
        imported(tmp_path, flat)


def test_nothing_is_written_for_a_bad_name(tmp_path: Path) -> None:
    path = tfjs_models.mobilenet("mobilenet16", 16).write(tmp_path)
    with pytest.raises(UserError, match=r"written as \.safetensors"):
        import_weights(str(path), tmp_path / "out.json", downloads=tmp_path)
    assert not (tmp_path / "out.json").exists()
