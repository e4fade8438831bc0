"""Atrous convolution: any output stride from one set of weights (paper, section 4.1).

Layers beyond the output stride do not stride; later layers dilate instead. A layer that would have strided
keeps the dilation of the layers before it, since it reads the same grid, at more positions. With padding by
the dilation and inputs of 32 * n + 1 pixels, the dense network computes exactly what the strided one does:
its output at stride 8, at every second cell, is its output at stride 16, borders included. So the same
weights train at stride 16 and are evaluated at stride 8.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn


class Layer(NamedTuple):
    """The stride and dilation of one layer."""

    stride: int
    dilation: int


def atrous(strides: Sequence[int], output_stride: int) -> Iterator[Layer]:
    """The layers of a network whose native strides are `strides`, at another output stride."""
    reached, dilation = 1, 1
    for stride in strides:
        if reached * stride > output_stride:
            yield Layer(1, dilation)
            dilation *= stride
        else:
            yield Layer(stride, dilation)
            reached *= stride


def conv3x3(inputs: int, outputs: int, layer: Layer, *, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution, padded by its dilation."""
    stride, dilation = layer
    return nn.Conv2d(
        inputs, outputs, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=bias
    )
