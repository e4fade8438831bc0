"""ONNX export: other runtimes compute the same fields, for images of any size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from personlab.codec.fields import CHANNELS
from personlab.errors import UserError
from personlab.model.network import from_checkpoint
from personlab.model.onnx import export
from personlab.model.pretrained import import_weights
from personlab.params import Stride
from personlab.skeleton import KEYPOINTS
from tests import tfjs_models

onnxruntime = pytest.importorskip("onnxruntime")


def imported(folder: Path, heads: dict[str, int] | None) -> Path:
    graph = tfjs_models.mobilenet("mobilenet16", 16, heads=heads).write(folder / "graph")
    import_weights(str(graph), folder / "net.safetensors", cache=folder)
    return folder / "net.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stride", "heads", "names"),
    [(16, None, list(CHANNELS)), (8, tfjs_models.POSE_HEADS, ["heatmap", "short", "mid"])],
)
def test_onnxruntime_computes_the_same(
    tmp_path: Path, stride: Stride, heads: dict[str, int] | None, names: list[str]
) -> None:
    weights, out = imported(tmp_path, heads), tmp_path / "net.onnx"
    export(weights, out, stride=stride)
    network = from_checkpoint(weights, stride=stride)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(out), options)
    assert [output.name for output in session.get_outputs()] == names
    for batch, height, width in ((1, 33, 65), (2, 49, 33), (1, 17, 17)):
        image = torch.from_numpy(
            np.random.RandomState(0).randint(0, 256, (batch, 3, height, width)).astype(np.float32)
        )
        with torch.inference_mode():
            expected = network(image).probabilities().tensors()
        for name, found in zip(names, session.run(None, {"image": image.numpy()}), strict=True):
            np.testing.assert_allclose(found, expected[name].numpy(), rtol=0, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["personlab.stride"]) == stride
    assert json.loads(about["personlab.keypoints"]) == list(KEYPOINTS)
    assert str(Path(__file__).parent.parent).encode() not in out.read_bytes()


def test_a_name_that_is_not_onnx(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"written as \.onnx"):
        export(tmp_path / "net.safetensors", tmp_path / "net.pb")
