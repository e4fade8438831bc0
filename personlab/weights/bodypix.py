"""Import BodyPix and PoseNet, which Google published for TensorFlow.js, as checkpoints.

BodyPix is PersonLab with all five fields; PoseNet lacks seg and long. Their offset channels are all y, then
all x, in pixels; mid-range offsets are two heads of 16 edges each. Intermediate heads were not published.
BodyPix' heads for body parts are dropped.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from personlab import params
from personlab.errors import UserError, first
from personlab.model import checkpoint
from personlab.model.backbones.mobilenet import MobileNet
from personlab.model.network import PersonLab
from personlab.people import FloatArray
from personlab.skeleton import COCO_PERSON
from personlab.weights import tfjs
from personlab.weights.tfjs import GraphModel

log = logging.getLogger("personlab")

# The weights in the graph that each field's head consists of.
_HEADS: Final = {
    "heatmap": ("heatmap_2/weights",),
    "short": ("offset_2/weights",),
    "mid": ("displacement_fwd_2/weights", "displacement_bwd_2/weights"),
    "seg": ("segment_2/weights",),
    "long": ("embedding_2/weights",),
}
_OFFSETS: Final = ("short", "mid", "long")
# Heads for body parts, and constants of the graph.
_DROPPED: Final = re.compile(r"part_(heatmap|offset)_2/|clip_by_value/|Pad(_\d+)?/paddings$")
LICENCE: Final = "Apache-2.0, as published by Google"


def import_weights(source: str, out: Path, *, downloads: Path) -> None:
    """Write a checkpoint from a graph model.

    Args:
        source: path or http(s) address of a model-stride*.json. The checkpoint is the same for every stride.
        out: the checkpoint, *.safetensors; its card is written beside it.
        downloads: folder that the files of an address are downloaded to, and kept in.

    Raises:
        UserError: see `tfjs.read`; or the model is neither BodyPix nor PoseNet, or incomplete.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: weights are written as .safetensors; choose such a name")
    graph = tfjs.read(source, downloads)
    network = _network(graph)
    checkpoint.save(out, _state(graph, network), network.card(_provenance(graph, network)))
    log.info("%s: %s", out, _describe(network))


def _network(graph: GraphModel) -> PersonLab:
    """The network that the graph's weights fit, on the meta device, at the graph's stride."""
    model = _architecture(graph)
    masks = any(name in graph.arrays for name in (*_HEADS["seg"], *_HEADS["long"]))
    with torch.device("meta"):
        networks = [
            PersonLab(model, stride=stride, skeleton=COCO_PERSON, masks=masks) for stride in (8, 16, 32)
        ]
    _check_names(graph, networks[0])
    network = min(networks, key=lambda each: len(_differences(graph, each)))
    if differences := _differences(graph, network):
        raise UserError(f"{graph.source}: not a network known here: {differences[0]}")
    return network


def _architecture(graph: GraphModel) -> params.Model:
    def outputs(name: str) -> int:
        return (0, *graph.arrays[name].shape)[-1] if name in graph.arrays else 0

    if width := outputs("Conv2d_0/weights"):
        widens = outputs("Conv2d_13_pointwise/weights") == 32 * width
        return params.Model(backbone="mobilenet" if widens else "mobilenet16", width=width)
    if width := outputs("conv1/weights"):
        return params.Model(backbone="slim-resnet50", width=width)
    raise UserError(
        f"{graph.source}: neither a MobileNetV1 (no Conv2d_0/weights) nor a ResNet-50 (no conv1/weights); "
        "only BodyPix and PoseNet can be imported"
    )


def _convolutions(network: PersonLab) -> Iterator[tuple[str, str, nn.Conv2d]]:
    """(name of the weights in the graph, name in the network, convolution) of the backbone."""
    for name, module in network.backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            yield _graph_name(name, isinstance(network.backbone, MobileNet)), f"backbone.{name}", module


def _graph_name(name: str, mobilenet: bool) -> str:
    """blocks.0.depthwise is Conv2d_1_depthwise, block2.0.conv1 is block2/unit_1/bottleneck_v1/conv1."""
    if not mobilenet:
        name = re.sub(r"\.(\d+)\.", lambda unit: f"/unit_{int(unit[1]) + 1}/bottleneck_v1/", name)
        return f"{name}/weights"
    if name == "conv0":
        return "Conv2d_0/weights"
    _, index, kind = name.split(".")
    return f"Conv2d_{int(index) + 1}_{kind}/{'depthwise_' if kind == 'depthwise' else ''}weights"


def _bias_name(weights: str) -> str:
    bias = "bias" if weights.endswith("/depthwise_weights") else "Conv2D_bias"
    return weights.removesuffix("weights") + bias


def _differences(graph: GraphModel, network: PersonLab) -> list[str]:
    """The convolutions whose stride or dilation differs between graph and network."""
    return [
        f"{name} is used with stride and dilation {graph.convolutions.get(name)}, not {expected}"
        for name, _, module in _convolutions(network)
        if graph.convolutions.get(name) != (expected := (module.stride[0], module.dilation[0]))
    ]


def _check_names(graph: GraphModel, network: PersonLab) -> None:
    weights = [name for name, *_ in _convolutions(network)]
    weights += [name for field in network.heads for name in _HEADS[field]]
    expected = {name for weight in weights for name in (weight, _bias_name(weight))}
    missing = sorted(expected - graph.arrays.keys())
    if missing:
        raise UserError(f"{graph.source}: not all of BodyPix or PoseNet; missing: {first(missing)}")
    unknown = sorted(name for name in graph.arrays.keys() - expected if not _DROPPED.match(name))
    if unknown:
        raise UserError(f"{graph.source}: not BodyPix or PoseNet; unknown weights: {first(unknown)}")


def _state(graph: GraphModel, network: PersonLab) -> dict[str, Tensor]:
    """The network's state dict, without intermediate heads."""
    arrays = {}
    for graph_name, name, module in _convolutions(network):
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = _convolution(graph, graph_name, module.groups > 1)
    for field in network.heads:
        heads = [_convolution(graph, name) for name in _HEADS[field]]
        if field in _OFFSETS:  # our heads predict in units of R
            heads = [tuple(_interleave(array) / network.model.radius for array in head) for head in heads]
        weights, biases = zip(*heads, strict=True)
        arrays[f"heads.{field}.weight"] = np.concatenate(weights)
        arrays[f"heads.{field}.bias"] = np.concatenate(biases)
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    if wrong := checkpoint.misshapen(network.state_dict(), state):
        raise UserError(f"{graph.source}: misshapen: {first(wrong)}")
    return state


def _convolution(graph: GraphModel, name: str, depthwise: bool = False) -> tuple[FloatArray, ...]:
    """Weights, as outputs x inputs x H x W, and bias."""
    array = graph.arrays[name]
    if array.ndim != 4:
        raise UserError(f"{graph.source}: {name} has shape {array.shape}; a convolution's has 4 dimensions")
    order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
    return array.transpose(order), graph.arrays[_bias_name(name)]


def _interleave(array: FloatArray) -> FloatArray:
    """Reorder channels from all y, then all x, to x, y of each offset."""
    count = len(array) // 2
    return array[: 2 * count].reshape(2, count, *array.shape[1:])[::-1].swapaxes(0, 1).reshape(array.shape)


def _describe(network: PersonLab) -> str:
    name = "BodyPix" if network.masks else "PoseNet"
    if isinstance(network.backbone, MobileNet):
        return f"{name} MobileNetV1 {network.model.width / 32:.2f}"
    return f"{name} ResNet-50"


def _provenance(graph: GraphModel, network: PersonLab) -> dict[str, Any]:
    return {
        "source": graph.source if "://" in graph.source else "/".join(Path(graph.source).parts[-2:]),
        "licence": LICENCE,
        "architecture": _describe(network),
        "weights": graph.quantisation,
        "normalisation": {"mean": list(network.backbone.mean), "std": list(network.backbone.std)},
        "dropped": sorted({name.split("/")[0] for name in graph.arrays if name.startswith("part_")}),
    }
