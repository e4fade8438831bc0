"""Backbones by atrous convolution: any output stride from one set of weights (paper, section 4.1).

Layers beyond the output stride do not stride; later layers dilate instead. A layer that would have strided
keeps the dilation of the layers before it, since it reads the same grid, at more positions. With padding by
the dilation and inputs of 32 * n + 1 pixels, the dense network computes exactly what the strided one does:
its output at stride 8, at every second cell, is its output at stride 16, borders included. So the same
weights train at stride 16 and are evaluated at stride 8.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import nn


class Backbone(nn.Module):
    """A classification network without its classifier, at output stride 8, 16 or 32.

    `forward` takes B x 3 x H x W normalised images and returns the features of a middle layer, for
    intermediate supervision, and of the last one, both at the output stride.

    Attributes:
        channels: of the middle and of the last features.
        mean, std: RGB statistics of the images, on a scale of 0..255.
    """

    channels: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def init_weights(self, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
        """Draw convolution weights as He et al. (2015) do; biases are 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class Layer(NamedTuple):
    """The stride and dilation of one layer."""

    stride: int
    dilation: int


def atrous(strides: Sequence[int], output_stride: int) -> list[Layer]:
    """The layers of a network whose native strides are `strides`, at another output stride."""
    layers, reached, dilation = [], 1, 1
    for stride in strides:
        if reached * stride > output_stride:
            layers.append(Layer(1, dilation))
            dilation *= stride
        else:
            layers.append(Layer(stride, dilation))
            reached *= stride
    return layers


def conv3x3(inputs: int, outputs: int, layer: Layer, *, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution, padded by its dilation."""
    stride, dilation = layer
    return nn.Conv2d(
        inputs, outputs, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=bias
    )
