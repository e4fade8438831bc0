"""ResNet-50 as built by TF-Slim, which Google published with BodyPix.

Differences from torchvision's (`resnet`): the last unit of a block strides instead of the first, a shortcut
that only strides takes every second cell, and batch normalisation is folded into the biases. TF-Slim pads
strided convolutions and the pooling explicitly, the same on both sides, so padding by the dilation is exact
at any input size.
"""

from itertools import islice
from typing import Final, cast

from torch import Tensor, nn

from personlab.model.backbones.atrous import Layer, atrous, conv3x3
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
        out = self.relu(self.conv1(x))
        out = self.conv3(self.relu(self.conv2(out)))
        return cast(Tensor, self.relu(out + self._identity(x)))

    def _identity(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            return cast(Tensor, self.shortcut(x))
        return x if self.stride == 1 else x[..., :: self.stride, :: self.stride]


class SlimResNet(nn.Module):
    """A ResNet-50 without its classifier, at output stride 8, 16 or 32.

    Args:
        width: channels of the first layer; 64 in the standard network.
        output_stride: input pixels per output cell; it changes no parameter.

    Attributes:
        channels: of the two outputs, (middle, final).
        mean, std: RGB statistics of its inputs, on a scale of 0..255.
    """

    mean: Final = (123.15, 115.90, 103.06)
    std: Final = (1.0, 1.0, 1.0)

    def __init__(self, *, width: int = 64, output_stride: Stride = 32) -> None:
        super().__init__()
        self.channels = (4 * width * _EXPANSION, 8 * width * _EXPANSION)
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        strides = [2, 2]  # of conv1 and maxpool, then of all units
        for count, stride in zip(_UNITS, _BLOCK_STRIDES, strict=True):
            strides += [1] * (count - 1) + [stride]
        layers = islice(atrous(strides, output_stride), 2, None)
        inputs = width
        blocks = []
        for index, count in enumerate(_UNITS):
            planes = width << index
            units = []
            for layer in islice(layers, count):
                units.append(Unit(inputs, planes, layer))
                inputs = _EXPANSION * planes
            blocks.append(nn.Sequential(*units))
        self.block1, self.block2, self.block3, self.block4 = blocks
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features of B x 3 x H x W normalised images: (middle, final), both at the output stride.

        `middle` is the output of the third block, for intermediate supervision.
        """
        x = self.maxpool(self.relu(self.conv1(x)))
        middle: Tensor = self.block3(self.block2(self.block1(x)))
        final: Tensor = self.block4(middle)
        return middle, final
