"""The network: an atrous ResNet and one 1x1 convolution per field (paper, sections 3 and 4.1).

RGB images in, fields out: logits for heatmap and seg, offsets in input pixels. During training a second set
of heads reads a layer in the middle of the backbone (intermediate supervision); inference does not run it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from personlab import params
from personlab.codec.fields import CHANNELS, Fields, cells
from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.model.resnet import Normalise, ResNet
from personlab.skeleton import EDGES, KEYPOINTS, E, K

# Training starts from heatmaps that are almost nowhere 1, as they are.
_HEATMAP_PRIOR: Final = 0.02
_HEAD_STD: Final = 0.001

_FORMAT: Final = "personlab-1"


class Heads(nn.ModuleDict):
    """One 1x1 convolution per field.

    What the offset convolutions put out is in units of `radius` and is multiplied by it: the numbers that
    training moves are then about 1 for every field, as it is with the losses, while everybody else sees
    input pixels.
    """

    def __init__(self, inputs: int, radius: float) -> None:
        super().__init__({name: nn.Conv2d(inputs, channels, 1) for name, channels in CHANNELS.items()})
        self.radius = radius
        for head in self.values():
            nn.init.normal_(cast(Tensor, head.weight), std=_HEAD_STD)
            nn.init.zeros_(cast(Tensor, head.bias))
        prior = math.log(_HEATMAP_PRIOR / (1 - _HEATMAP_PRIOR))
        nn.init.constant_(cast(Tensor, self["heatmap"].bias), prior)

    def forward(self, features: Tensor, stride: int) -> Fields:
        """Fields from B x C x H x W features at `stride`; float32 always.

        Under autocast the heads stay in float32: in bfloat16 an offset of 200 pixels would be rounded to
        a whole pixel, and the heads are cheap.
        """
        with torch.autocast(features.device.type, enabled=False):
            out = {name: head(features.float()).contiguous() for name, head in self.items()}
        batch, _, height, width = features.shape
        return Fields(
            heatmap=out["heatmap"],
            short=self.radius * out["short"].view(batch, K, 2, height, width),
            mid=self.radius * out["mid"].view(batch, E, 2, height, width),
            seg=out["seg"][:, 0],
            long=self.radius * out["long"].view(batch, K, 2, height, width),
            stride=stride,
        )


class PersonLab(nn.Module):
    """Images to fields.

    `build` makes one to train, `from_checkpoint` one that was trained. `stride` is the output stride; the
    same weights serve every stride. Weights given by `model.init` keep their normalisation statistics.
    """

    def __init__(self, model: params.Model, codec: params.Codec, *, stride: params.Stride) -> None:
        super().__init__()
        self.model, self.codec, self.stride = model, codec, stride
        self.backbone = ResNet(
            model.backbone,
            width=model.width,
            output_stride=stride,
            frozen_statistics=model.init is not None,
        )
        middle, final = self.backbone.channels
        self.heads = Heads(final, codec.radius)
        self.intermediate = Heads(middle, codec.radius)
        self.normalise = Normalise()
        # The faster layout for convolutions, on CPUs too.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Fields:
        """Fields of B x 3 x H x W RGB images, uint8 or floats in 0..255; H and W are stride * n + 1.

        Raises:
            ValueError: a side that is not stride * n + 1.
        """
        fields: Fields = self.heads(self._features(images)[1], self.stride)
        return fields

    def forward_training(self, images: Tensor) -> tuple[Fields, Fields]:
        """As `forward`, together with the fields that the middle of the network predicts: (final, middle)."""
        middle, final = self._features(images)
        return self.heads(final, self.stride), self.intermediate(middle, self.stride)

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        for side in images.shape[-2:]:
            cells(side, self.stride)
        normalised = self.normalise(images).contiguous(memory_format=torch.channels_last)
        features: tuple[Tensor, Tensor] = self.backbone(normalised)
        return features

    def card(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """The card of a checkpoint: all that `from_checkpoint` needs.

        training: where the weights come from, for people to read (parameters, hash of the data, steps).
        """
        return {
            "format": _FORMAT,
            "model": self.model.model_dump(),
            "codec": self.codec.model_dump(),
            "skeleton": _skeleton(),
            "training": dict(training),
        }


def build(
    model: params.Model, codec: params.Codec, *, stride: params.Stride, root: Path = Path()
) -> PersonLab:
    """A network to train: random weights, or those of `model.init` (a path, relative to `root`).

    `model.init` is a checkpoint of this program (heads included), or a torchvision ResNet state dict in
    safetensors (backbone only; its classifier is dropped).

    Raises:
        UserError: `model.init` cannot be read or does not fit the network.
    """
    network = PersonLab(model, codec, stride=stride)
    if model.init is None:
        return network
    path = root / model.init
    state = checkpoint.load_weights(path)
    if any(name.startswith("backbone.") for name in state):
        state, _, trained = _read(path)
        if trained.radius != codec.radius:
            raise UserError(
                f"{path}: trained with codec.radius {trained.radius:g}, not {codec.radius:g}, and its "
                "offsets are in that unit: use the same radius, or start from a backbone alone"
            )
        checkpoint.fit(network, state, path)
    else:
        backbone = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
        checkpoint.fit(network.backbone, backbone, path)
    return network


def from_checkpoint(path: Path, *, stride: params.Stride) -> PersonLab:
    """The network whose weights and card are at `path`, in evaluation mode, at any output stride.

    Raises:
        UserError: the files cannot be read, are not a PersonLab network's, or know another skeleton.
    """
    state, model, codec = _read(path)
    network = PersonLab(model, codec, stride=stride)
    checkpoint.fit(network, state, path)
    return network.eval()


def _read(path: Path) -> tuple[dict[str, Tensor], params.Model, params.Codec]:
    state, card = checkpoint.load(path)
    sidecar = path.with_suffix(".json")
    if card.get("format") != _FORMAT:
        raise UserError(f"{sidecar}: format {card.get('format')!r}, not {_FORMAT!r}: not a PersonLab network")
    if card.get("skeleton") != _skeleton():
        raise UserError(f"{sidecar}: trained for other keypoints or edges than this version has; train again")
    try:
        model = params.Model.model_validate(card.get("model"))
        codec = params.Codec.model_validate(card.get("codec"))
    except ValidationError as error:
        raise UserError(f"{sidecar}: does not describe a network: {error}") from None
    return state, model, codec


def _skeleton() -> dict[str, Any]:
    return {"keypoints": list(KEYPOINTS), "edges": [list(edge) for edge in EDGES]}
