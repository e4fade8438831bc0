"""ResNet-50 as built by TF-Slim, which Google published with BodyPix.

Differences from torchvision's (`resnet`): the last unit of a block strides instead of the first, a shortcut
that only strides takes every second cell, and batch normalisation is folded into the biases. TF-Slim pads
strided convolutions and the pooling explicitly, the same on both sides, so padding by the dilation is exact
at any input size.
"""

from itertools import islice
from typing import Final

from torch import Tensor, nn

from personlab.model.backbones.atrous import Backbone, Layer, atrous, conv3x3
from personlab.params import Stride

_EXPANSION: Final = 4
_UNITS: Final = (3, 4, 6, 3)  # of each block
_BLOCK_STRIDES: Final = (2, 2, 2, 1)  # of each block's last unit


class Unit(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the 3x3 strides."""

    def __init__(self, inputs: int, planes: int, layer: Layer) -> None:
        super().__init__()
        outputs = _EXPANSION * planes
        self.stride = layer.stride
        self.conv1 = nn.Conv2d(inputs, planes, 1)
        self.conv2 = conv3x3(planes, planes, layer)
        self.conv3 = nn.Conv2d(planes, outputs, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, layer.stride) if inputs != outputs else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv1(x))
        out = self.conv3(self.relu(self.conv2(out)))
        shortcut = self.shortcut(x) if self.shortcut is not None else x[..., :: self.stride, :: self.stride]
        out = self.relu(out + shortcut)
        return out


class SlimResNet(Backbone):
    """ResNet-50; its middle features are the output of `block3`.

    Args:
        width: channels of the first layer; 64 in the standard network.
        output_stride: input pixels per output cell.
    """

    mean = (123.15, 115.90, 103.06)
    std = (1.0, 1.0, 1.0)

    def __init__(self, *, width: int = 64, output_stride: Stride = 32) -> None:
        super().__init__()
        self.channels = (4 * width * _EXPANSION, 8 * width * _EXPANSION)
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        strides = [2, 2]  # of conv1 and maxpool, then of all units
        for count, stride in zip(_UNITS, _BLOCK_STRIDES, strict=True):
            strides += [1] * (count - 1) + [stride]
        layers = iter(atrous(strides, output_stride)[2:])
        inputs, blocks = width, []
        for planes, count in zip((width, 2 * width, 4 * width, 8 * width), _UNITS, strict=True):
            units = []
            for layer in islice(layers, count):
                units.append(Unit(inputs, planes, layer))
                inputs = _EXPANSION * planes
            blocks.append(nn.Sequential(*units))
        self.block1, self.block2, self.block3, self.block4 = blocks
        self.init_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.maxpool(self.relu(self.conv1(x)))
        middle = self.block3(self.block2(self.block1(x)))
        return middle, self.block4(middle)
