"""ResNet with atrous convolution.

Parameter names and shapes are those of torchvision's ResNet (v1.5) without `fc`, so that its ImageNet weights
load unchanged.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final, Self

from torch import Tensor, nn

from personlab.model.backbones.atrous import Backbone, Layer, atrous, conv3x3
from personlab.params import ResNetKind, Stride


def _conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()  # the identity
    return nn.Sequential(_conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the first strides."""

    expansion: Final = 1
    layers: Final = 2  # 3x3 convolutions

    def __init__(self, inputs: int, planes: int, first: Layer, second: Layer) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, planes, first, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, second, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(inputs, planes, first.stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.relu(out + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the 3x3 strides."""

    expansion: Final = 4
    layers: Final = 1

    def __init__(self, inputs: int, planes: int, layer: Layer) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = _conv1x1(inputs, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, layer, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv1x1(planes, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(inputs, outputs, layer.stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.relu(out + self.downsample(x))
        return out


_STAGES: Final[dict[ResNetKind, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(Backbone):
    """ResNet-18, 50, 101 or 152; its middle features are the output of `layer3`.

    Args:
        kind: depth of the ResNet.
        width: channels of the first stage; 64 in the standard network.
        output_stride: input pixels per output cell.
        freeze_bn: normalise with the running statistics in training mode too, and do not update them; scale
            and bias stay trainable. For pretrained weights.
    """

    mean = (123.675, 116.28, 103.53)  # of ImageNet, as in torchvision
    std = (58.395, 57.12, 57.375)

    def __init__(
        self, kind: ResNetKind, *, width: int = 64, output_stride: Stride = 32, freeze_bn: bool = False
    ) -> None:
        super().__init__()
        block, counts = _STAGES[kind]
        self.freeze_bn = freeze_bn
        self.channels = (4 * width * block.expansion, 8 * width * block.expansion)
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        strides = [2, 2]  # of conv1 and maxpool, then of all 3x3 convolutions
        for count, stride in zip(counts, (1, 2, 2, 2), strict=True):
            strides += [stride] + [1] * (count * block.layers - 1)
        layers = iter(atrous(strides, output_stride)[2:])
        self._inputs = width
        self.layer1 = self._stage(block, width, counts[0], layers)
        self.layer2 = self._stage(block, 2 * width, counts[1], layers)
        self.layer3 = self._stage(block, 4 * width, counts[2], layers)
        self.layer4 = self._stage(block, 8 * width, counts[3], layers)
        self._middle_step = max(1, output_stride // 16)  # layer3 has stride 16 at most
        self.init_weights("fan_out")

    def _stage(
        self, block: type[BasicBlock | Bottleneck], planes: int, count: int, layers: Iterator[Layer]
    ) -> nn.Sequential:
        blocks = []
        for _ in range(count):
            blocks.append(block(self._inputs, planes, *islice(layers, block.layers)))
            self._inputs = planes * block.expansion
        return nn.Sequential(*blocks)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_bn:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        middle = self.layer3(self.layer2(self.layer1(x)))
        final = self.layer4(middle)
        return middle[..., :: self._middle_step, :: self._middle_step], final
