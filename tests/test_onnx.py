"""ONNX export: other runtimes compute the same fields, for images of any size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from personlab.codec.fields import FIELDS
from personlab.errors import UserError
from personlab.model.network import PersonLab, from_checkpoint
from personlab.params import Stride
from personlab.weights.bodypix import import_weights
from personlab.weights.onnx import export
from tests import tfjs_models
from tests.coco_person import KEYPOINTS
from tests.fixtures.make_tfjs_reference import PUBLISHED

onnxruntime = pytest.importorskip("onnxruntime")


def imported(folder: Path, heads: dict[str, int] | None) -> Path:
    graph = tfjs_models.mobilenet("mobilenet16", 16, heads=heads).write(folder / "graph")
    import_weights(str(graph), folder / "net.safetensors", downloads=folder)
    return folder / "net.safetensors"


def opened(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


def assert_same(session: Any, network: PersonLab, image: Tensor) -> None:
    """Probabilities, and offsets in pixels, to 1e-4."""
    with torch.inference_mode():
        expected = network(image).probabilities().tensors()
    names = [output.name for output in session.get_outputs()]
    for name, found in zip(names, session.run(None, {"image": image.numpy()}), strict=True):
        np.testing.assert_allclose(found, expected[name].numpy(), rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stride", "heads", "names"),
    [(16, None, list(FIELDS)), (8, tfjs_models.POSE_HEADS, ["heatmap", "short", "mid"])],
)
def test_onnxruntime_computes_the_same(
    tmp_path: Path, stride: Stride, heads: dict[str, int] | None, names: list[str]
) -> None:
    weights, out = imported(tmp_path, heads), tmp_path / "net.onnx"
    export(weights, out, stride=stride)
    network = from_checkpoint(weights, stride=stride)
    session = opened(out)
    assert [output.name for output in session.get_outputs()] == names
    for batch, height, width in ((1, 33, 65), (2, 49, 33), (1, 17, 17)):
        image = torch.from_numpy(
            np.random.RandomState(0).randint(0, 256, (batch, 3, height, width)).astype(np.float32)
        )
        assert_same(session, network, image)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["personlab.stride"]) == stride
    assert json.loads(about["personlab.keypoints"]) == list(KEYPOINTS)
    assert str(Path(__file__).parent.parent).encode() not in out.read_bytes()


@pytest.mark.slow
@pytest.mark.testdata
def test_a_published_network_computes_the_same_on_a_photo(tmp_path: Path, testdata: Path) -> None:
    case = PUBLISHED[0]
    weights, out = tmp_path / "net.safetensors", tmp_path / "net.onnx"
    import_weights(str(case.model(testdata, tmp_path)), weights, downloads=tmp_path)
    export(weights, out, stride=case.stride)
    image = torch.from_numpy(case.image(testdata).copy()).permute(2, 0, 1)[None].float()
    assert_same(opened(out), from_checkpoint(weights, stride=case.stride), image)


def test_a_name_that_is_not_onnx(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"written as \.onnx"):
        export(tmp_path / "net.safetensors", tmp_path / "net.pb")
