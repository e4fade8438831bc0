"""ResNet-50 as TensorFlow's slim library builds it and Google published it with BodyPix.

It differs from torchvision's (`resnet`): the last unit of a block strides instead of the first, a shortcut
that strides only picks every second cell, and normalisation is folded into biases. Its strided convolutions
and the pooling pad explicitly, the same on both sides, so that padding by the dilation is exact at any size.
"""

from typing import Final, cast

from torch import Tensor, nn

from personlab.model.backbones.atrous import atrous
from personlab.params import Stride

_EXPANSION: Final = 4
_UNITS: Final = (3, 4, 6, 3)  # of each block
_BLOCK_STRIDES: Final = (2, 2, 2, 1)


class Unit(nn.Module):
    """1x1, 3x3, 1x1; the 3x3 strides."""

    def __init__(self, inputs: int, planes: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        outputs = _EXPANSION * planes
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, planes, 1)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=dilation, dilation=dilation)
        self.conv3 = nn.Conv2d(planes, outputs, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else None
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
        width: channels of the first layer; 64 is the standard network.
        output_stride: input pixels per output cell. It changes no parameter.

    Attributes:
        channels: of the two outputs, (middle, final).
        pixels: mean and deviation that its inputs are normalised with, on a scale of 0..255.
    """

    pixels: Final = ((123.15, 115.90, 103.06), (1.0, 1.0, 1.0))

    def __init__(self, *, width: int = 64, output_stride: Stride = 32) -> None:
        super().__init__()
        self.channels = (4 * width * _EXPANSION, 8 * width * _EXPANSION)
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        strides = [s for n, last in zip(_UNITS, _BLOCK_STRIDES, strict=True) for s in (*[1] * (n - 1), last)]
        layers = iter(list(atrous((2, 2, *strides), output_stride))[2:])
        inputs = width
        blocks = []
        for index, count in enumerate(_UNITS):
            planes = width << index
            units = []
            for _ in range(count):
                stride, dilation = next(layers)
                units.append(Unit(inputs, planes, stride=stride, dilation=dilation))
                inputs = _EXPANSION * planes
            blocks.append(nn.Sequential(*units))
        self.block1, self.block2, self.block3, self.block4 = blocks
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features of B x 3 x H x W images: (middle, final), both at the output stride.

        `middle` is the output of the third block (of four), for intermediate supervision.
        """
        x = self.maxpool(self.relu(self.conv1(x)))
        middle: Tensor = self.block3(self.block2(self.block1(x)))
        final: Tensor = self.block4(middle)
        return middle, final
