"""MobileNetV1 as published with PoseNet and BodyPix: ReLU6, and batch normalisation folded into biases.

TensorFlow's SAME padding of a 3x3 convolution of stride 2 is (0, 1) on even sides and (1, 1) on odd ones.
Inputs of output stride * n + 1 pixels have an odd side at every layer that strides, where padding by the
dilation on both sides equals SAME padding.
"""

import math
from typing import Final, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import relu6

from personlab.model.backbones.atrous import Backbone, Layer, atrous, conv3x3
from personlab.params import Stride

MobileNetKind = Literal["mobilenet", "mobilenet16"]

# (stride, output channels / width) of the 13 blocks.
_SHARED: Final = ((1, 2), (2, 4), (1, 4), (2, 8), (1, 8), (2, 16), *((1, 16),) * 5)
_BLOCKS: Final[dict[MobileNetKind, tuple[tuple[int, int], ...]]] = {
    "mobilenet": (*_SHARED, (2, 32), (1, 32)),
    "mobilenet16": (*_SHARED, (1, 16), (1, 16)),
}


def _relu6(x: Tensor) -> Tensor:
    """In place, except in an export, which traces that twice as fast."""
    return relu6(x, inplace=not torch.compiler.is_exporting())


class Block(nn.Module):
    """A depthwise-separable convolution: 3x3 of each channel, then 1x1 across channels."""

    def __init__(self, inputs: int, outputs: int, layer: Layer) -> None:
        super().__init__()
        self.depthwise = conv3x3(inputs, inputs, layer, groups=inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return _relu6(self.pointwise(_relu6(self._depthwise(x))))

    def _depthwise(self, x: Tensor) -> Tensor:
        # On CPUs the bfloat16 gradient of a strided depthwise convolution takes 6 to 20 times as long as the
        # float32 one (oneDNN of PyTorch 2.13), a fifth of a training step.
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and self.depthwise.stride[0] > 1:
            with torch.autocast("cpu", enabled=False):
                return cast(Tensor, self.depthwise(x.float())).bfloat16()
        return cast(Tensor, self.depthwise(x))


class MobileNet(Backbone):
    """MobileNetV1; its middle features are the input of the last two blocks.

    Args:
        kind: "mobilenet" is the standard network, of native stride 32; in "mobilenet16" the last two blocks
            neither stride nor widen, as in PoseNet and BodyPix 0.50 and 0.75.
        width: channels of the first layer; 32 in the standard network.
        output_stride: input pixels per output cell.
    """

    mean = (127.5, 127.5, 127.5)
    std = (127.5, 127.5, 127.5)

    def __init__(self, kind: MobileNetKind, *, width: int = 32, output_stride: Stride = 32) -> None:
        super().__init__()
        strides = (2, *(stride for stride, _ in _BLOCKS[kind]))
        _, *layers = atrous(strides, output_stride)
        self.conv0 = nn.Conv2d(3, width, 3, 2, padding=1)
        outputs = [width, *(multiple * width for _, multiple in _BLOCKS[kind])]
        self.blocks = nn.Sequential(*map(Block, outputs[:-1], outputs[1:], layers))
        self.channels = (outputs[-3], outputs[-1])
        # Features of a native stride below the output stride are subsampled.
        self._steps = [-(-output_stride // native) for native in (16, math.prod(strides))]
        self.init_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = self.blocks[:-2](_relu6(self.conv0(x)))
        final = self.blocks[-2:](middle)
        fine, coarse = self._steps
        return middle[..., ::fine, ::fine], final[..., ::coarse, ::coarse]
