"""Small TensorFlow.js graph models with random weights: the published graphs, with fewer channels.

Strides and dilations are listed as in the published files, not computed.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

POSE_HEADS = {"heatmap_2": 17, "offset_2": 34, "displacement_fwd_2": 32, "displacement_bwd_2": 32}
MASK_HEADS = {"segment_2": 1, "embedding_2": 34}
PART_HEADS = {"part_heatmap_2": 24, "part_offset_2": 48}

# (stride, dilation) of the 13 depthwise convolutions, by (kind, output stride)
_TO_8 = [(1, 1), (2, 1), (1, 1), (2, 1), (1, 1)]
DEPTHWISE = {
    ("mobilenet16", 8): [*_TO_8, (1, 1), *[(1, 2)] * 7],
    ("mobilenet16", 16): [*_TO_8, (2, 1), *[(1, 1)] * 7],
    ("mobilenet", 8): [*_TO_8, (1, 1), *[(1, 2)] * 6, (1, 4)],
    ("mobilenet", 16): [*_TO_8, (2, 1), *[(1, 1)] * 6, (1, 2)],
    ("mobilenet", 32): [*_TO_8, (2, 1), *[(1, 1)] * 5, (2, 1), (1, 1)],
}
# of the 3x3 convolutions in the 16 units of ResNet-50
UNITS = {
    8: [*[(1, 1)] * 2, (2, 1), *[(1, 1)] * 4, *[(1, 2)] * 6, *[(1, 4)] * 3],
    16: [*[(1, 1)] * 2, (2, 1), *[(1, 1)] * 3, (2, 1), *[(1, 1)] * 6, *[(1, 2)] * 3],
    32: [*[(1, 1)] * 2, (2, 1), *[(1, 1)] * 3, (2, 1), *[(1, 1)] * 5, (2, 1), *[(1, 1)] * 3],
}


@dataclass
class Model:
    """A graph model; its weights may be changed before it is written.

    quantised: uint8, uint16, float16, or None for float32.
    """

    scope: str
    nodes: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    quantised: str | None = None
    shards: int = 2
    random: np.random.RandomState = field(default_factory=lambda: np.random.RandomState(0))

    def node(self, op: str, name: str, inputs: Sequence[str] = (), **attributes: Any) -> str:
        self.nodes.append({"name": name, "op": op, "input": list(inputs), "attr": attributes})
        return name

    def constant(self, name: str, value: Array) -> str:
        kind = "DT_INT32" if value.dtype == np.int32 else "DT_FLOAT"
        shape = {"dim": [{"size": str(n)} for n in value.shape]}
        self.weights[name] = value
        tensor = {"tensor": {"dtype": kind, "tensorShape": shape}}
        return self.node("Const", name, dtype={"type": kind}, value=tensor)

    def convolution(
        self,
        x: str,
        layer: str,
        shape: tuple[int, int, int, int],
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: str = "SAME",
    ) -> str:
        """height, width, inputs, outputs; depthwise where the layer's name says so."""
        depthwise = layer.endswith("depthwise")
        fan_in = shape[0] * shape[1] * (1 if depthwise else shape[2])
        weights = self.random.standard_normal(shape) * np.sqrt(2 / fan_in)
        bias = self.random.standard_normal(shape[2] if depthwise else shape[3]) / 4
        prefix = "depthwise_" if depthwise else ""
        names = [
            self.constant(f"{self.scope}/{layer}/{prefix}weights", weights.astype(np.float32)),
            self.constant(f"{self.scope}/{layer}/{prefix or 'Conv2D_'}bias", bias.astype(np.float32)),
        ]
        conv = self.node(
            "DepthwiseConv2dNative" if depthwise else "Conv2D",
            f"{layer}/conv",
            [x, names[0]],
            strides=_numbers(1, stride, stride, 1),
            dilations=_numbers(dilation, dilation, 1, 1) if depthwise else _numbers(1, dilation, dilation, 1),
            padding=_text(padding),
            data_format=_text("NHWC"),
        )
        return self.node("BiasAdd", f"{layer}/add", [conv, names[1]], data_format=_text("NHWC"))

    def heads(self, x: str, channels: int, heads: dict[str, int]) -> None:
        for name, outputs in heads.items():
            self.convolution(x, name, (1, 1, channels, outputs))

    def json(self) -> dict[str, Any]:
        return {
            "format": "graph-model",
            "modelTopology": {"node": self.nodes, "library": {}, "versions": {}},
            "weightsManifest": [
                {
                    "paths": [f"group1-shard{i + 1}of{self.shards}.bin" for i in range(self.shards)],
                    "weights": [self._entry(name, value)[0] for name, value in self.weights.items()],
                }
            ],
        }

    def write(self, folder: Path, name: str = "model-stride16.json") -> Path:
        """The JSON and its shards, which cut through the weights anywhere."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_text(json.dumps(self.json()))
        content = b"".join(self._entry(name, value)[1] for name, value in self.weights.items())
        size = -(-len(content) // self.shards)
        for index, shard in enumerate(self.json()["weightsManifest"][0]["paths"]):
            (folder / shard).write_bytes(content[index * size : (index + 1) * size])
        return path

    def _entry(self, name: str, value: Array) -> tuple[dict[str, Any], bytes]:
        entry = {"name": name, "shape": list(value.shape), "dtype": str(value.dtype)}
        if not self.quantised:
            return entry, value.tobytes()
        if self.quantised == "float16":
            if value.dtype != np.float32:  # the converter leaves others as they are
                return entry, value.tobytes()
            half = {"dtype": "float16", "original_dtype": "float32"}
            return entry | {"quantization": half}, value.astype(np.float16).tobytes()
        low, high = float(value.min()), float(value.max())
        scale = (high - low) / np.iinfo(self.quantised).max or 1.0
        stored = np.round((value - low) / scale).astype(self.quantised)
        return entry | {
            "quantization": {"dtype": self.quantised, "scale": scale, "min": low}
        }, stored.tobytes()


def mobilenet(
    kind: str, stride: int, *, width: int = 2, heads: dict[str, int] | None = None, seed: int = 0
) -> Model:
    """A MobileNetV1 of so many channels in its first layer; by default with all of BodyPix' heads."""
    model = Model("MobilenetV1", random=np.random.RandomState(seed))
    x = _input(model)
    x = model.node("Relu6", "r0", [model.convolution(x, "Conv2d_0", (3, 3, 3, width), stride=2)])
    last = 32 if kind == "mobilenet" else 16
    multiples = [2, 4, 4, 8, 8, *[16] * 6, last, last]
    inputs = width
    for index, ((step, dilation), multiple) in enumerate(
        zip(DEPTHWISE[kind, stride], multiples, strict=True), start=1
    ):
        layer, outputs = f"Conv2d_{index}", multiple * width
        deep = model.convolution(x, f"{layer}_depthwise", (3, 3, inputs, 1), stride=step, dilation=dilation)
        x = model.node("Relu6", f"d{index}", [deep])
        x = model.node(
            "Relu6", f"p{index}", [model.convolution(x, f"{layer}_pointwise", (1, 1, inputs, outputs))]
        )
        inputs = outputs
    model.heads(x, inputs, POSE_HEADS | MASK_HEADS | PART_HEADS if heads is None else heads)
    return model


def resnet(stride: int, *, width: int = 2, seed: int = 0) -> Model:
    """A ResNet-50 of so many channels in its first layer, with all of BodyPix' heads."""
    model = Model("resnet_v1_50", random=np.random.RandomState(seed))
    three = model.constant("resnet_v1_50/Pad/paddings", _paddings(3))
    one = model.constant("resnet_v1_50/Pad_1/paddings", _paddings(1))
    x = model.node("Pad", "pad", [_input(model), three])
    x = model.convolution(x, "conv1", (7, 7, 3, width), stride=2, padding="VALID")
    model.weights["resnet_v1_50/conv1/weights"] *= 0.01  # its inputs are up to 150
    x = model.node("Pad", "pad1", [model.node("Relu", "relu", [x]), one])
    x = _pool(model, x, "pool1", 3, 2, "VALID")
    units = iter(UNITS[stride])
    inputs = width
    for block, count in enumerate((3, 4, 6, 3), start=1):
        planes = width << (block - 1)
        for unit in range(1, count + 1):
            step, dilation = next(units)
            at = f"block{block}/unit_{unit}/bottleneck_v1"
            if unit == 1:
                same = model.convolution(x, f"{at}/shortcut", (1, 1, inputs, 4 * planes))
            else:
                same = x if step == 1 else _pool(model, x, f"{at}/pool", 1, step, "SAME")
            y = model.node("Relu", f"{at}/r1", [model.convolution(x, f"{at}/conv1", (1, 1, inputs, planes))])
            padding = "SAME"
            if step > 1:
                y, padding = model.node("Pad", f"{at}/pad", [y, one]), "VALID"
            y = model.convolution(
                y, f"{at}/conv2", (3, 3, planes, planes), stride=step, dilation=dilation, padding=padding
            )
            y = model.convolution(
                model.node("Relu", f"{at}/r2", [y]), f"{at}/conv3", (1, 1, planes, 4 * planes)
            )
            # Sums of so many random blocks would grow beyond all measure.
            model.weights[f"resnet_v1_50/{at}/conv3/weights"] *= 0.3
            x = model.node("Relu", f"{at}/out", [model.node("Add", f"{at}/sum", [y, same])])
            inputs = 4 * planes
    model.heads(x, inputs, POSE_HEADS | MASK_HEADS | PART_HEADS)
    return model


def image(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Random pixels, height x width x RGB, always the same."""
    return np.random.RandomState(1).randint(0, 256, (height, width, 3)).astype(np.uint8)


def _input(model: Model) -> str:
    shape = {"shape": {"dim": [{"size": "1"}, {"size": "-1"}, {"size": "-1"}, {"size": "3"}]}}
    return model.node("Placeholder", "sub_2", dtype={"type": "DT_FLOAT"}, shape=shape)


def _pool(model: Model, x: str, name: str, side: int, stride: int, padding: str) -> str:
    return model.node(
        "MaxPool",
        name,
        [x],
        ksize=_numbers(1, side, side, 1),
        strides=_numbers(1, stride, stride, 1),
        padding=_text(padding),
        data_format=_text("NHWC"),
    )


def _paddings(side: int) -> Array:
    return np.array([[0, 0], [side, side], [side, side], [0, 0]], np.int32)


def _numbers(*values: int) -> dict[str, Any]:
    return {"list": {"i": [str(value) for value in values]}}


def _text(value: str) -> dict[str, str]:
    return {"s": base64.b64encode(value.encode()).decode()}
