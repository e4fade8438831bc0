"""The backbones, and how they are made, normalised for and initialised from files."""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from personlab import params
from personlab.model import checkpoint
from personlab.model.backbones.atrous import Backbone
from personlab.model.backbones.mobilenet import MobileNet
from personlab.model.backbones.resnet import ResNet
from personlab.model.backbones.slim_resnet import SlimResNet

PREFIX: Final = "backbone."  # of a backbone's parameters in the checkpoint of a whole network


class Normalise(nn.Module):
    """RGB images to the inputs of a backbone: (x - mean) / std, in the faster layout for convolutions."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """B x 3 x H x W, uint8 or floats in 0..255."""
        normalised = (images.float() - self.mean) / self.std
        return normalised.contiguous(memory_format=torch.channels_last)


def make(kind: params.BackboneKind, *, width: int, stride: params.Stride, freeze_bn: bool) -> Backbone:
    """A backbone with random weights. width: channels of the first layer; freeze_bn: see `ResNet`."""
    match kind:
        case "mobilenet" | "mobilenet16":
            return MobileNet(kind, width=width, output_stride=stride)
        case "slim-resnet50":
            return SlimResNet(width=width, output_stride=stride)
        case _:
            return ResNet(kind, width=width, output_stride=stride, freeze_bn=freeze_bn)


def load(backbone: Backbone, path: Path) -> None:
    """Load the backbone of a personlab checkpoint, or the state dict of a torchvision ResNet in safetensors,
    whose classifier is ignored.

    Raises:
        UserError: the file cannot be read, or its weights do not fit.
    """
    state = checkpoint.load_weights(path)
    if any(name.startswith(PREFIX) for name in state):
        state = {name.removeprefix(PREFIX): each for name, each in state.items() if name.startswith(PREFIX)}
    else:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    checkpoint.fit(backbone, state, path)
