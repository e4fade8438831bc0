"""Atrous ResNet: torchvision's ResNet, name for name, with a choice of output stride (paper, section 4.1).

Parameter names and shapes are those of torchvision's ResNet without `fc`, so its ImageNet weights load
unchanged; `width` 64 is that standard network, smaller widths make narrow ones.

A stage whose stride is removed to keep the activations dense dilates its later convolutions instead. The
convolution that used to stride keeps the dilation of the stage before: it still reads the same grid, only at
more positions. The dense network thus computes exactly what the strided one does, and everything between: its
output at stride 8, taken at every second cell, is its output at stride 16, borders included, for inputs of
32 * n + 1 pixels. So one set of weights serves training at 16 and evaluation at 8.
"""

from typing import Final, Self, cast

import torch
from torch import Tensor, nn

from personlab.params import ResNetKind, Stride

Channels = tuple[float, float, float]

# ImageNet's, as torchvision's weights expect them, on a scale of 0..255.
_MEAN: Final = (123.675, 116.28, 103.53)
_DEVIATION: Final = (58.395, 57.12, 57.375)


def _conv3x3(inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)


def _conv1x1(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv1x1(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs))


class Normalise(nn.Module):
    """RGB in 0..255 to what a backbone was trained on; torchvision's: mean 0, deviation 1 per channel."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Channels = _MEAN, deviation: Channels = _DEVIATION) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """B x 3 x H x W, uint8 or floats in 0..255."""
        return (images.float() - self.mean) / self.deviation


class BasicBlock(nn.Module):
    """Two 3x3 convolutions. `entry_dilation` belongs to the one that strides, `dilation` to the one after."""

    expansion: Final = 1

    def __init__(self, inputs: int, planes: int, *, stride: int, entry_dilation: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, planes, stride=stride, dilation=entry_dilation)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return cast(Tensor, self.relu(out + (x if self.downsample is None else self.downsample(x))))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1; the 3x3 strides (torchvision's "v1.5"). Nothing after it has an extent to dilate."""

    expansion: Final = 4

    def __init__(self, inputs: int, planes: int, *, stride: int, entry_dilation: int, dilation: int) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = _conv1x1(inputs, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, stride=stride, dilation=entry_dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv1x1(planes, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return cast(Tensor, self.relu(out + (x if self.downsample is None else self.downsample(x))))


Block = type[BasicBlock] | type[Bottleneck]

_STAGES: Final[dict[ResNetKind, tuple[Block, tuple[int, int, int, int]]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """A ResNet without its classifier, at output stride 8, 16 or 32.

    Args:
        backbone: which ResNet.
        width: channels of the first stage; 64 is the standard network.
        output_stride: input pixels per output cell. It changes no parameter: the same state dict loads at
            every stride.
        freeze_bn: always normalise with the running statistics and never update them, in training
            mode too (scale and bias stay trainable). For pretrained weights; a network trained from scratch
            has no statistics worth freezing.

    Attributes:
        channels: of the two outputs, (middle, final).
        pixels: mean and deviation that its inputs are normalised with, on a scale of 0..255.
    """

    pixels: Final = (_MEAN, _DEVIATION)

    def __init__(
        self,
        backbone: ResNetKind,
        *,
        width: int = 64,
        output_stride: Stride = 32,
        freeze_bn: bool = False,
    ) -> None:
        super().__init__()
        block, counts = _STAGES[backbone]
        self.output_stride = output_stride
        self.freeze_bn = freeze_bn
        self.channels = (4 * width * block.expansion, 8 * width * block.expansion)
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self._stride, self._dilation, self._inputs = 4, 1, width
        self.layer1 = self._stage(block, width, counts[0], stride=1)
        self.layer2 = self._stage(block, 2 * width, counts[1], stride=2)
        self.layer3 = self._stage(block, 4 * width, counts[2], stride=2)
        self.layer4 = self._stage(block, 8 * width, counts[3], stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(self, block: Block, planes: int, count: int, *, stride: int) -> nn.Sequential:
        entry_dilation = self._dilation
        if self._stride * stride > self.output_stride:
            self._dilation, stride = self._dilation * stride, 1
        self._stride *= stride
        blocks = []
        for _ in range(count):
            blocks.append(
                block(
                    self._inputs,
                    planes,
                    stride=stride,
                    entry_dilation=entry_dilation,
                    dilation=self._dilation,
                )
            )
            self._inputs, stride, entry_dilation = planes * block.expansion, 1, self._dilation
        return nn.Sequential(*blocks)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_bn:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features of B x 3 x H x W images: (middle, final), both at the output stride.

        `middle` is the output of the third stage (of four), for intermediate supervision. At output stride 32
        that stage still works at 16; its every second cell is taken, so that both lie on one grid.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        middle: Tensor = self.layer3(self.layer2(self.layer1(x)))
        final: Tensor = self.layer4(middle)
        if self.output_stride == 32:
            middle = middle[..., ::2, ::2]
        return middle, final
