"""Export a network to ONNX: images in, fields out, for any runtime.

Input `image`: batch x 3 x height x width float32, RGB in 0..255 (normalisation is inside). Height and width
are free but for being stride * n + 1. Outputs are named and shaped as the fields (`codec.fields`): offsets in
input pixels, (x, y); `heatmap` and `seg` as probabilities, what equations 1, 3 and 6 call p_k and p_S. A
network that finds poses only has no `seg` and `long`. The model's metadata holds the stride, the radius of
the disks and the skeleton.
"""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from personlab.errors import UserError
from personlab.model.network import PersonLab, from_checkpoint
from personlab.params import Stride
from personlab.utils.files import atomic_file


def export(weights: Path, out: Path, *, stride: Stride = 16) -> None:
    """Write the network of a checkpoint, at this output stride, to `out` (*.onnx).

    Raises:
        UserError: the checkpoint cannot be read, or the packages that write ONNX are not installed.
    """
    if out.suffix != ".onnx":
        raise UserError(f"{out}: ONNX models are written as .onnx; choose such a name")
    network = from_checkpoint(weights, stride=stride)
    program = _traced(network)
    _label(program.model, network)
    with atomic_file(out) as partial:
        program.save(str(partial))


class _Named(nn.Module):
    """The network as a function of plain tensors."""

    def __init__(self, network: PersonLab) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        fields = self.network(image).probabilities().tensors()
        return tuple(fields[name] for name in self.network.heads)


def _traced(network: PersonLab) -> Any:
    stride = network.stride
    side = 4 * stride + 1
    free = {
        0: torch.export.Dim("batch"),
        2: stride * torch.export.Dim("rows", min=2) + 1,
        3: stride * torch.export.Dim("columns", min=2) + 1,
    }
    # It would say that torchvision is absent.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch to itself
            return torch.onnx.export(
                _Named(network).eval(),
                (torch.zeros(2, 3, side, side + stride),),
                dynamo=True,
                input_names=["image"],
                output_names=list(network.heads),
                dynamic_shapes={"image": free},
                verbose=False,
            )
    except ModuleNotFoundError as error:
        raise UserError(
            f"ONNX export needs the package {error.name}: pip install 'personlab[onnx]'"
        ) from None


def _label(model: Any, network: PersonLab) -> None:
    """Replace torch's notes, which name files of this machine, by what a decoder has to know: personlab.*"""
    card = network.card({})
    about = {
        "stride": network.stride,
        "radius": network.model.radius,
        "keypoints": card["skeleton"]["keypoints"],
        "edges": card["skeleton"]["edges"],
    }
    for part in (model, model.graph, *model.graph, *model.graph.initializers.values()):
        part.metadata_props.clear()
    model.metadata_props.update({f"personlab.{name}": json.dumps(value) for name, value in about.items()})
