"""The networks that look at pictures, for all models that do: which there are, and weights to begin with."""

from pathlib import Path
from typing import Final

from personlab import params
from personlab.model import checkpoint
from personlab.model.backbones.mobilenet import MobileNet
from personlab.model.backbones.resnet import ResNet
from personlab.model.backbones.slim_resnet import SlimResNet

# How its weights are called in the checkpoint of a whole network.
PREFIX: Final = "backbone."

Backbone = ResNet | MobileNet | SlimResNet


def make(kind: params.BackboneKind, *, width: int, stride: params.Stride, freeze_bn: bool) -> Backbone:
    """A backbone with random weights.

    width: channels of its first stage. stride: of its output. freeze_bn: it is to be given weights, whose
    normalisation statistics stay what they are.
    """
    match kind:
        case "mobilenet" | "mobilenet16":
            return MobileNet(kind, width=width, output_stride=stride)
        case "slim-resnet50":
            return SlimResNet(width=width, output_stride=stride)
        case _:
            return ResNet(kind, width=width, output_stride=stride, freeze_bn=freeze_bn)


def load(backbone: Backbone, path: Path) -> None:
    """Give a backbone the weights at `path`: of the same one in a checkpoint of this program, whose heads are
    left out, or a torchvision ResNet's in safetensors, whose classifier is.

    Raises:
        UserError: the file cannot be read, or its weights do not fit.
    """
    state = checkpoint.load_weights(path)
    if any(name.startswith(PREFIX) for name in state):
        state = {name.removeprefix(PREFIX): each for name, each in state.items() if name.startswith(PREFIX)}
    else:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    checkpoint.fit(backbone, state, path)
