"""MobileNetV1 as Google published it with PoseNet and BodyPix: normalisation folded into biases, and ReLU6.

TensorFlow's SAME padding puts an odd pixel at the end: a 3x3 convolution of stride 2 pads 0 before and 1
after on even sides, 1 and 1 on odd ones. Inputs of output stride * n + 1 pixels have an odd side at every
layer that strides, so padding by the dilation on both sides *is* SAME padding, and the dense network computes
exactly what the strided one does (see `resnet`).
"""

import math
from typing import Final, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import relu6

from personlab.model.backbones.atrous import atrous
from personlab.params import Stride

MobileNetKind = Literal["mobilenet", "mobilenet16"]

# (stride, output channels / width) of the 13 blocks. PoseNet's and BodyPix' networks of 0.50 and 0.75 times
# the standard width neither stride nor widen in the last two.
_SHARED: Final = ((1, 2), (2, 4), (1, 4), (2, 8), (1, 8), (2, 16), *((1, 16),) * 5)
_BLOCKS: Final[dict[MobileNetKind, tuple[tuple[int, int], ...]]] = {
    "mobilenet": (*_SHARED, (2, 32), (1, 32)),
    "mobilenet16": (*_SHARED, (1, 16), (1, 16)),
}


class Block(nn.Module):
    """A 3x3 convolution of each channel by itself, and a 1x1 convolution across them."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            inputs, inputs, 3, stride, padding=dilation, dilation=dilation, groups=inputs
        )
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return relu6(self.pointwise(relu6(self._depthwise(x), inplace=True)), inplace=True)

    def _depthwise(self, x: Tensor) -> Tensor:
        # On CPUs the gradient of a depthwise convolution that strides takes six to twenty times as long in
        # bfloat16 as in float32 (oneDNN of PyTorch 2.13): a fifth of a whole training step.
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and self.depthwise.stride[0] > 1:
            with torch.autocast("cpu", enabled=False):
                return cast(Tensor, self.depthwise(x.float())).bfloat16()
        return cast(Tensor, self.depthwise(x))


class MobileNet(nn.Module):
    """A MobileNetV1 without its classifier, at output stride 8, 16 or 32.

    Args:
        kind: "mobilenet" is the standard one (native stride 32), "mobilenet16" ends at stride 16.
        width: channels of the first layer; 32 is the standard network.
        output_stride: input pixels per output cell. It changes no parameter.

    Attributes:
        channels: of the two outputs, (middle, final).
        pixels: mean and deviation that its inputs are normalised with, on a scale of 0..255.
    """

    pixels: Final = ((127.5,) * 3, (127.5,) * 3)

    def __init__(self, kind: MobileNetKind, *, width: int = 32, output_stride: Stride = 32) -> None:
        super().__init__()
        blocks = _BLOCKS[kind]
        strides = (2, *(stride for stride, _ in blocks))
        layers = list(atrous(strides, output_stride))
        self.conv0 = nn.Conv2d(3, width, 3, 2, padding=1)
        self.blocks = nn.ModuleList()
        inputs = width
        for (_, multiple), (block_stride, dilation) in zip(blocks, layers[1:], strict=True):
            self.blocks.append(Block(inputs, multiple * width, stride=block_stride, dilation=dilation))
            inputs = multiple * width
        self.channels = (16 * width, inputs)
        self._middle = len(_SHARED) - 1
        # How many cells of each output's own grid make one step of the output grid.
        self._steps = tuple(-(-output_stride // native) for native in (16, math.prod(strides)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features of B x 3 x H x W images: (middle, final), both at the output stride.

        `middle` is what enters the last two blocks. What is native to a finer grid than the output's is taken
        at every second cell.
        """
        x = relu6(self.conv0(x), inplace=True)
        middle = x
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == self._middle:
                middle = x
        return _every(middle, self._steps[0]), _every(x, self._steps[1])


def _every(x: Tensor, step: int) -> Tensor:
    return x if step == 1 else x[..., ::step, ::step]
