"""MobileNetV1 as published with PoseNet and BodyPix: ReLU6, and batch normalisation folded into biases.

TensorFlow's SAME padding of a 3x3 convolution of stride 2 is (0, 1) on even sides and (1, 1) on odd ones.
Inputs of output stride * n + 1 pixels have an odd side at every layer that strides, where padding by the
dilation on both sides equals SAME padding.
"""

import math
from itertools import islice
from typing import Final, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import relu6

from personlab.model.backbones.atrous import Layer, atrous, conv3x3
from personlab.params import Stride

MobileNetKind = Literal["mobilenet", "mobilenet16"]

# (stride, output channels / width) of the 13 blocks.
_SHARED: Final = ((1, 2), (2, 4), (1, 4), (2, 8), (1, 8), (2, 16), *((1, 16),) * 5)
_BLOCKS: Final[dict[MobileNetKind, tuple[tuple[int, int], ...]]] = {
    "mobilenet": (*_SHARED, (2, 32), (1, 32)),
    "mobilenet16": (*_SHARED, (1, 16), (1, 16)),
}


class Block(nn.Module):
    """A depthwise-separable convolution: 3x3 of each channel, then 1x1 across channels."""

    def __init__(self, inputs: int, outputs: int, layer: Layer) -> None:
        super().__init__()
        self.depthwise = conv3x3(inputs, inputs, layer, groups=inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return relu6(self.pointwise(relu6(self._depthwise(x), inplace=True)), inplace=True)

    def _depthwise(self, x: Tensor) -> Tensor:
        # On CPUs the bfloat16 gradient of a strided depthwise convolution takes 6 to 20 times as long as the
        # float32 one (oneDNN of PyTorch 2.13), a fifth of a training step.
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and self.depthwise.stride[0] > 1:
            with torch.autocast("cpu", enabled=False):
                return cast(Tensor, self.depthwise(x.float())).bfloat16()
        return cast(Tensor, self.depthwise(x))


class MobileNet(nn.Module):
    """A MobileNetV1 without its classifier, at output stride 8, 16 or 32.

    Args:
        kind: "mobilenet" is the standard network, of native stride 32; in "mobilenet16" the last two blocks
            neither stride nor widen, as in PoseNet and BodyPix 0.50 and 0.75.
        width: channels of the first layer; 32 in the standard network.
        output_stride: input pixels per output cell; it changes no parameter.

    Attributes:
        channels: of the two outputs, (middle, final).
        mean, std: RGB statistics of its inputs, on a scale of 0..255.
    """

    mean: Final = (127.5, 127.5, 127.5)
    std: Final = (127.5, 127.5, 127.5)

    def __init__(self, kind: MobileNetKind, *, width: int = 32, output_stride: Stride = 32) -> None:
        super().__init__()
        strides = (2, *(stride for stride, _ in _BLOCKS[kind]))
        _, *layers = atrous(strides, output_stride)
        self.conv0 = nn.Conv2d(3, width, 3, 2, padding=1)
        self.blocks = nn.ModuleList()
        inputs = width
        for (_, multiple), layer in zip(_BLOCKS[kind], layers, strict=True):
            self.blocks.append(Block(inputs, multiple * width, layer))
            inputs = multiple * width
        self.channels = (16 * width, inputs)
        # by how much each output is finer than the output stride: its native stride may be smaller
        self._steps = tuple(-(-output_stride // native) for native in (16, math.prod(strides)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features of B x 3 x H x W normalised images: (middle, final), both at the output stride.

        `middle` is the input of the last two blocks, for intermediate supervision. Of features whose native
        stride is smaller than the output stride, every second cell is taken.
        """
        x = relu6(self.conv0(x), inplace=True)
        blocks = iter(self.blocks)
        for block in islice(blocks, len(_SHARED)):
            x = block(x)
        middle = x
        for block in blocks:
            x = block(x)
        return _subsample(middle, self._steps[0]), _subsample(x, self._steps[1])


def _subsample(x: Tensor, step: int) -> Tensor:
    return x if step == 1 else x[..., ::step, ::step]
