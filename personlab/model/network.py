"""The network: an atrous backbone and one 1x1 convolution per field (paper, sections 3 and 4.1).

RGB images in, fields out: logits for heatmap and seg, offsets in input pixels. During training a second set
of heads reads a layer in the middle of the backbone (intermediate supervision); inference does not run it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from personlab import params
from personlab.codec.fields import CHANNELS, Fields, cells
from personlab.errors import UserError
from personlab.model import backbones as backbone
from personlab.model import checkpoint
from personlab.model.backbones.resnet import Normalise
from personlab.skeleton import EDGES, KEYPOINTS, E, K

# Training starts from heatmaps that are almost nowhere 1, as they are.
_HEATMAP_PRIOR: Final = 0.02
_HEAD_STD: Final = 0.001

_FORMAT: Final = "personlab-1"
_POSES: Final = ("heatmap", "short", "mid")  # the fields that poses are made of
_INTERMEDIATE: Final = "intermediate."


class Heads(nn.ModuleDict):
    """One 1x1 convolution per field.

    What the offset convolutions put out is in units of `radius` and is multiplied by it: the numbers that
    training moves are then about 1 for every field, as it is with the losses, while everybody else sees
    input pixels. Without `masks` there are no heads for seg and long.
    """

    def __init__(self, inputs: int, radius: float, *, masks: bool = True) -> None:
        names = CHANNELS if masks else _POSES
        super().__init__({name: nn.Conv2d(inputs, CHANNELS[name], 1) for name in names})
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
            out = {name: self._field(name, features.float()) for name in CHANNELS}
        return Fields(
            heatmap=out["heatmap"],
            short=self.radius * out["short"].unflatten(1, (K, 2)),
            mid=self.radius * out["mid"].unflatten(1, (E, 2)),
            seg=out["seg"][:, 0],
            long=self.radius * out["long"].unflatten(1, (K, 2)),
            stride=stride,
        )

    def _field(self, name: str, features: Tensor) -> Tensor:
        if name not in self:
            return features.new_empty((features.shape[0], CHANNELS[name], 0, 0))
        return cast(Tensor, self[name](features).contiguous())


class PersonLab(nn.Module):
    """Images to fields.

    `build` makes one to train, `from_checkpoint` one that was trained. `stride` is the output stride; the
    same weights serve every stride. Weights given by `model.init` keep their normalisation statistics.
    Without `masks` it finds poses only, as PoseNet does.
    """

    def __init__(
        self,
        model: params.Model,
        *,
        stride: params.Stride,
        masks: bool = True,
        decode: params.Decode | None = None,
    ) -> None:
        super().__init__()
        self.model, self.stride, self.masks, self.decode = model, stride, masks, decode
        self.backbone = backbone.make(
            model.backbone, width=model.width, stride=stride, freeze_bn=model.init is not None
        )
        middle, final = self.backbone.channels
        self.heads = Heads(final, model.radius, masks=masks)
        self.intermediate = Heads(middle, model.radius, masks=masks)
        self.normalise = Normalise(*self.backbone.pixels)
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
            "skeleton": _skeleton(),
            "fields": list(self.heads),
            "training": dict(training),
        }


def build(model: params.Model, *, stride: params.Stride, root: Path = Path()) -> PersonLab:
    """A network to train: random weights, or those of `model.init` (a path, relative to `root`).

    `model.init` is a checkpoint of this program (heads included, unless `model.init_heads` is false; imported
    weights have no intermediate ones, which then start fresh), or a torchvision ResNet state dict in
    safetensors (backbone only; its classifier is dropped).

    Raises:
        UserError: `model.init` cannot be read or does not fit the network.
    """
    network = PersonLab(model, stride=stride)
    if model.init is None:
        return network
    path = root / model.init
    state = checkpoint.load_weights(path)
    if model.init_heads and any(name.startswith(backbone.PREFIX) for name in state):
        saved = _read(path)
        _check_trainable(saved, model, path)
        _fit(network, saved.state, path)
    else:
        backbone.load(network.backbone, path)
    return network


def from_checkpoint(path: Path, *, stride: params.Stride) -> PersonLab:
    """The network whose weights and card are at `path`, in evaluation mode, at any output stride.

    Raises:
        UserError: the files cannot be read, are not a PersonLab network's, or know another skeleton.
    """
    saved = _read(path)
    network = PersonLab(saved.model, stride=stride, masks=saved.masks, decode=saved.decode)
    _fit(network, saved.state, path)
    return network.eval()


def _fit(network: PersonLab, state: dict[str, Tensor], path: Path) -> None:
    """Load a checkpoint. Where it has no intermediate heads at all (inference runs none, and imported weights
    have none) the network's own, fresh ones stay.
    """
    if not any(name.startswith(_INTERMEDIATE) for name in state):
        own = network.state_dict().items()
        state = state | {name: tensor for name, tensor in own if name.startswith(_INTERMEDIATE)}
    checkpoint.fit(network, state, path)


@dataclass(frozen=True)
class _Saved:
    """A checkpoint and what its card says."""

    state: dict[str, Tensor]
    model: params.Model
    decode: params.Decode | None  # None before `infer` has judged the model
    masks: bool


def _check_trainable(saved: _Saved, model: params.Model, path: Path) -> None:
    given, wanted = ((m.backbone, m.width) for m in (saved.model, model))
    if given != wanted:
        raise UserError(
            f"{path}: a {given[0]} of width {given[1]}, not a {wanted[0]} of width {wanted[1]}: "
            "set model.backbone and model.width to what it is"
        )
    if saved.model.radius != model.radius:
        raise UserError(
            f"{path}: trained with model.radius {saved.model.radius:g}, not {model.radius:g}, and its "
            "offsets are in that unit: use the same radius, or set model.init_heads to false"
        )
    if not saved.masks:
        raise UserError(
            f"{path}: finds poses only, and training needs heads for masks too; start from others, or set "
            "model.init_heads to false"
        )


def _read(path: Path) -> _Saved:
    state, card = checkpoint.load(path)
    sidecar = path.with_suffix(".json")
    if card.get("format") != _FORMAT:
        raise UserError(f"{sidecar}: format {card.get('format')!r}, not {_FORMAT!r}: not a PersonLab network")
    if card.get("skeleton") != _skeleton():
        raise UserError(f"{sidecar}: trained for other keypoints or edges than this version has; train again")
    try:
        settings = params.from_saved(card)
    except ValidationError as error:
        raise UserError(f"{sidecar}: does not describe a network: {error}") from None
    if not isinstance(card.get("model"), dict):
        raise UserError(f"{sidecar}: does not describe a network (no 'model')")
    fields = card.get("fields", list(CHANNELS))  # older cards do not say: all of them
    if fields not in (list(CHANNELS), list(_POSES)):
        raise UserError(f"{sidecar}: fields {fields!r}, neither {list(CHANNELS)} nor {list(_POSES)}")
    decode = settings.decode if {"decode", "codec"} & card.keys() else None
    return _Saved(state, settings.model, decode, masks="seg" in fields)


def _skeleton() -> dict[str, Any]:
    return {"keypoints": list(KEYPOINTS), "edges": [list(edge) for edge in EDGES]}
