"""Export a network to ONNX, for other runtimes.

Input: `image`, B x 3 x H x W float32, RGB in 0..255; normalisation is part of the model. B, H and W are
dynamic; H and W must be stride * n + 1.

Outputs: the fields, with the names and shapes of `codec.fields`: `heatmap` and `seg` as probabilities (p_k
and p_S in equations 1, 3 and 6), offsets as (x, y) in input pixels. Networks without masks have no `seg` and
`long`.

Metadata, as JSON: personlab.stride, personlab.radius (of the disks, in input pixels), personlab.keypoints and
personlab.edges.
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
    """Write the network of a checkpoint to `out` (*.onnx), at output stride `stride`.

    Raises:
        UserError: the checkpoint cannot be read, or the packages that write ONNX are not installed.
    """
    if out.suffix != ".onnx":
        raise UserError(f"{out}: ONNX models are written as .onnx; choose such a name")
    network = from_checkpoint(weights, stride=stride)
    program = _program(network)
    _set_metadata(program.model, network)
    with atomic_file(out) as partial:
        program.save(str(partial))


class TupleOutput(nn.Module):
    """The network with its fields as a tuple of tensors."""

    def __init__(self, network: PersonLab) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        fields = self.network(image).probabilities().tensors()
        return tuple(fields[name] for name in self.network.heads)


def _program(network: PersonLab) -> Any:
    """The network as torch's ONNXProgram."""
    stride = network.stride
    side = 4 * stride + 1
    dynamic = {
        0: torch.export.Dim("batch"),
        2: stride * torch.export.Dim("rows", min=2) + 1,
        3: stride * torch.export.Dim("columns", min=2) + 1,
    }
    # silences a warning that torchvision is not installed
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's deprecation warnings about its own code
            return torch.onnx.export(
                TupleOutput(network).eval(),
                (torch.zeros(2, 3, side, side + stride),),
                dynamo=True,
                input_names=["image"],
                output_names=list(network.heads),
                dynamic_shapes={"image": dynamic},
                verbose=False,
            )
    except ModuleNotFoundError as error:
        raise UserError(f"ONNX export needs {error.name}: pip install 'personlab[onnx]'") from None


def _set_metadata(model: Any, network: PersonLab) -> None:
    """Replace torch's metadata, which contains paths of this machine, by what a decoder needs."""
    skeleton = {"keypoints": network.skeleton.keypoints, "edges": network.skeleton.edges}
    metadata = {"stride": network.stride, "radius": network.model.radius, **skeleton}
    for part in (model, model.graph, *model.graph, *model.graph.initializers.values()):
        part.metadata_props.clear()
    model.metadata_props.update({f"personlab.{name}": json.dumps(value) for name, value in metadata.items()})
