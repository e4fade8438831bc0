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
from personlab.weights import tfjs
from personlab.weights.tfjs import GraphModel

log = logging.getLogger("personlab")

# The heads of the graph that each field consists of.
_POSE_HEADS: Final = {
    "heatmap": ("heatmap_2",),
    "short": ("offset_2",),
    "mid": ("displacement_fwd_2", "displacement_bwd_2"),
}
_MASK_HEADS: Final = {"seg": ("segment_2",), "long": ("embedding_2",)}
_OFFSETS: Final = ("short", "mid", "long")
# Heads for body parts, and constants of the graph.
_DROPPED: Final = re.compile(r"part_(heatmap|offset)_2/|clip_by_value/|Pad(_\d+)?/paddings$")
_LICENCE: Final = "Apache-2.0, as published by Google"


def import_weights(source: str, out: Path, *, cache: Path) -> None:
    """Write a checkpoint from a graph model.

    Args:
        source: path or http(s) address of a model-stride*.json. The checkpoint is the same for every stride.
        out: the checkpoint, *.safetensors; its card is written beside it.
        cache: folder that downloads are kept in.

    Raises:
        UserError: see `tfjs.read`; or the model is neither BodyPix nor PoseNet, or incomplete.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: weights are written as .safetensors; choose such a name")
    graph = tfjs.read(source, cache)
    network = _network(graph)
    checkpoint.save(out, _state(graph, network), network.card(_provenance(graph, network)))
    log.info("%s: %s", out, _describe(network))


def _network(graph: GraphModel) -> PersonLab:
    """The network that the graph's weights fit, on the meta device, at the graph's stride."""
    model = _architecture(graph)
    masks = any(f"{head}/weights" in graph.arrays for heads in _MASK_HEADS.values() for head in heads)
    networks = []
    for stride in (8, 16, 32):
        with torch.device("meta"):
            network = PersonLab(model, stride=stride, masks=masks)
        networks.append((_differences(graph, network), network))
    _check_names(graph, networks[0][1])
    differences, network = min(networks, key=lambda pair: len(pair[0]))
    if differences:
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


# --- names ------------------------------------------------------------------------------------------------


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
    if weights.endswith("/depthwise_weights"):
        return weights.removesuffix("weights") + "bias"
    return weights.removesuffix("weights") + "Conv2D_bias"


def _heads(network: PersonLab) -> dict[str, tuple[str, ...]]:
    """Of each field, the names of the heads' weights in the graph."""
    heads = _POSE_HEADS | _MASK_HEADS if network.masks else _POSE_HEADS
    return {field: tuple(f"{name}/weights" for name in names) for field, names in heads.items()}


# --- checks -----------------------------------------------------------------------------------------------


def _differences(graph: GraphModel, network: PersonLab) -> list[str]:
    """The convolutions whose stride or dilation differs between graph and network."""
    return [
        f"{name} is used with stride and dilation {graph.convolutions.get(name)}, not {expected}"
        for name, _, module in _convolutions(network)
        if graph.convolutions.get(name) != (expected := (module.stride[0], module.dilation[0]))
    ]


def _check_names(graph: GraphModel, network: PersonLab) -> None:
    weights = [name for name, *_ in _convolutions(network)]
    weights += [name for names in _heads(network).values() for name in names]
    expected = {name for weight in weights for name in (weight, _bias_name(weight))}
    missing = sorted(expected - graph.arrays.keys())
    if missing:
        raise UserError(f"{graph.source}: not all of BodyPix or PoseNet; missing: {first(missing)}")
    unknown = sorted(name for name in graph.arrays.keys() - expected if not _DROPPED.match(name))
    if unknown:
        raise UserError(f"{graph.source}: not BodyPix or PoseNet; unknown weights: {first(unknown)}")


def _check_shapes(graph: GraphModel, network: PersonLab, state: dict[str, FloatArray]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    wrong = [
        f"{name} {array.shape} instead of {expected[name]}"
        for name, array in state.items()
        if array.shape != expected[name]
    ]
    if wrong:
        raise UserError(f"{graph.source}: misshapen: {first(wrong)}")


# --- weights ----------------------------------------------------------------------------------------------


def _state(graph: GraphModel, network: PersonLab) -> dict[str, Tensor]:
    """The network's state dict, without intermediate heads."""
    state = {}
    for weights, name, module in _convolutions(network):
        order = (2, 3, 0, 1) if module.groups > 1 else (3, 2, 0, 1)
        state[f"{name}.weight"] = _transposed(graph, weights, order)
        state[f"{name}.bias"] = graph.arrays[_bias_name(weights)]
    for field, heads in _heads(network).items():
        for part, arrays in (
            ("weight", [_transposed(graph, head, (3, 2, 0, 1)) for head in heads]),
            ("bias", [graph.arrays[_bias_name(head)] for head in heads]),
        ):
            if field in _OFFSETS:  # our heads predict in units of R
                arrays = [_interleave(array) / network.model.radius for array in arrays]
            state[f"heads.{field}.{part}"] = np.concatenate(arrays)
    _check_shapes(graph, network, state)
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}


def _transposed(graph: GraphModel, name: str, order: tuple[int, int, int, int]) -> FloatArray:
    array = graph.arrays[name]
    if array.ndim != 4:
        raise UserError(f"{graph.source}: {name} has shape {array.shape}; a convolution's has 4 dimensions")
    return array.transpose(order)


def _interleave(array: FloatArray) -> FloatArray:
    """Reorder channels from all y, then all x, to x, y of each offset."""
    count = len(array) // 2
    return array[: 2 * count].reshape(2, count, *array.shape[1:])[::-1].swapaxes(0, 1).reshape(array.shape)


# --- the card ---------------------------------------------------------------------------------------------


def _describe(network: PersonLab) -> str:
    name = "BodyPix" if network.masks else "PoseNet"
    if isinstance(network.backbone, MobileNet):
        return f"{name} MobileNetV1 {network.model.width / 32:.2f}"
    return f"{name} ResNet-50"


def _provenance(graph: GraphModel, network: PersonLab) -> dict[str, Any]:
    return {
        "source": graph.source if "://" in graph.source else "/".join(Path(graph.source).parts[-2:]),
        "licence": _LICENCE,
        "architecture": _describe(network),
        "weights": graph.quantisation,
        "normalisation": {"mean": list(network.backbone.mean), "std": list(network.backbone.std)},
        "dropped": sorted({name.split("/")[0] for name in graph.arrays if name.startswith("part_")}),
    }
