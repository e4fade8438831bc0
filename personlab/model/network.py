"""The network: an atrous backbone and one 1x1 convolution per field (paper, sections 3 and 4.1).

RGB images in, fields out: logits for heatmap and seg, offsets in input pixels. Training from random heads has
a second set of heads on a middle layer of the backbone (intermediate supervision), which accelerates it and
which inference does not run. Weights without a second set are trained without: gradients of random heads
would spoil the backbone.
"""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from personlab import params
from personlab.codec.fields import FIELDS, Fields, cells, channels
from personlab.errors import UserError
from personlab.model import backbones as backbone
from personlab.model import checkpoint
from personlab.skeleton import Skeleton

log = logging.getLogger("personlab")

# Initial heatmap probability: the targets are 0 almost everywhere.
_HEATMAP_PRIOR: Final = 0.02
_HEAD_STD: Final = 0.001

_FORMAT: Final = "personlab-1"
_POSES: Final = ("heatmap", "short", "mid")  # the fields that poses are decoded from
_INTERMEDIATE: Final = "intermediate."
_OF_MASKS: Final = re.compile(r"(heads|intermediate)\.(seg|long)\.")


class Heads(nn.ModuleDict):
    """One 1x1 convolution per field; without `masks` none for seg and long.

    The offset convolutions predict in units of R (`radius`), so that the outputs of all heads are of about
    the same size; `forward` scales them to input pixels.
    """

    def __init__(self, inputs: int, radius: float, skeleton: Skeleton, *, masks: bool = True) -> None:
        sizes = channels(skeleton)
        names = FIELDS if masks else _POSES
        super().__init__({name: nn.Conv2d(inputs, sizes[name], 1) for name in names})
        self.radius, self.sizes = radius, sizes
        for head in self.values():
            nn.init.normal_(cast(Tensor, head.weight), std=_HEAD_STD)
            nn.init.zeros_(cast(Tensor, head.bias))
        prior = math.log(_HEATMAP_PRIOR / (1 - _HEATMAP_PRIOR))
        nn.init.constant_(cast(Tensor, self["heatmap"].bias), prior)

    def forward(self, features: Tensor, stride: int) -> Fields:
        """Fields of B x C x H x W features at output stride `stride`, float32 also under autocast.

        In bfloat16 an offset of 200 pixels would be rounded to a whole pixel, and the heads are cheap.
        """
        features = features.float()
        out = {name: features.new_empty((features.shape[0], size, 0, 0)) for name, size in self.sizes.items()}
        with torch.autocast(features.device.type, enabled=False):
            out |= {name: head(features).contiguous() for name, head in self.items()}
        return Fields(
            heatmap=out["heatmap"],
            short=self.radius * out["short"].unflatten(1, (-1, 2)),
            mid=self.radius * out["mid"].unflatten(1, (-1, 2)),
            seg=out["seg"][:, 0],
            long=self.radius * out["long"].unflatten(1, (-1, 2)),
            stride=stride,
        )


class PersonLab(nn.Module):
    """Images to fields. `build` makes a network to train, `from_checkpoint` loads a trained one.

    Args:
        model: architecture and radius. With `model.init` the batch normalisation statistics are frozen.
        stride: output stride; the same weights work at every stride.
        skeleton: the keypoints.
        masks: predict seg and long too; without them the network finds poses only, as PoseNet does.
        decode: decoding parameters that the network was evaluated with, if it has been.
    """

    def __init__(
        self,
        model: params.Model,
        *,
        stride: params.Stride,
        skeleton: Skeleton,
        masks: bool = True,
        decode: params.Decode | None = None,
    ) -> None:
        super().__init__()
        self.model, self.stride, self.skeleton = model, stride, skeleton
        self.masks, self.decode = masks, decode
        self.backbone = backbone.make(
            model.backbone, width=model.width, stride=stride, freeze_bn=model.init is not None
        )
        middle, final = self.backbone.channels
        self.heads = Heads(final, model.radius, skeleton, masks=masks)
        self.intermediate: Heads | None = Heads(middle, model.radius, skeleton, masks=masks)
        self.normalise = backbone.Normalise(self.backbone)
        # The faster layout for convolutions, on CPUs too.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Fields:
        """Fields of B x 3 x H x W RGB images, uint8 or floats in 0..255.

        Raises:
            ValueError: H or W is not stride * n + 1.
        """
        fields: Fields = self.heads(self._features(images)[1], self.stride)
        return fields

    def forward_training(self, images: Tensor) -> list[Fields]:
        """The fields of the final heads and of the intermediate ones, if any; images as for `forward`."""
        middle, final = self._features(images)
        fields = [self.heads(final, self.stride)]
        if self.intermediate is not None:
            fields.append(self.intermediate(middle, self.stride))
        return fields

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        for side in images.shape[-2:]:
            cells(side, self.stride)
        features: tuple[Tensor, Tensor] = self.backbone(self.normalise(images))
        return features

    def card(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """The card of a checkpoint; `training` is the provenance of the weights, for information only."""
        return {
            "format": _FORMAT,
            "model": self.model.model_dump(),
            "skeleton": self.skeleton.to_record(),
            "fields": list(self.heads),
            "training": dict(training),
        }


def build(
    model: params.Model,
    *,
    stride: params.Stride,
    skeleton: Skeleton,
    masks: bool = True,
    root: Path = Path(),
) -> PersonLab:
    """A network to train, with random weights or those of the file `model.init` (relative to `root`).

    The file is a checkpoint of personlab, whose heads are used if `model.init_heads` is true and it has the
    same keypoints and tree, or the state dict of a torchvision ResNet in safetensors, whose classifier is
    dropped. Heads that the file lacks are random.

    Raises:
        UserError: `model.init` cannot be read or does not fit the network.
    """
    network = PersonLab(model, stride=stride, skeleton=skeleton, masks=masks)
    if model.init is None:
        return network
    path = root / model.init
    if saved := _heads_of(model, path):
        if saved.skeleton.has_channels_of(skeleton):
            _check_trainable(saved, network, path)
            _fit(network, saved.state, path)
            return network
        log.warning(
            "%s: has other keypoints (%s) than the data (%s): only its backbone is used",
            *(path, saved.skeleton, skeleton),
        )
    backbone.load(network.backbone, path)
    return network


def _heads_of(model: params.Model, path: Path) -> "_Saved | None":
    """The checkpoint of personlab whose heads are asked for, if the file is one."""
    if not model.init_heads:
        return None
    state = checkpoint.load_weights(path)
    return _read(path) if any(name.startswith(backbone.PREFIX) for name in state) else None


def from_checkpoint(path: Path, *, stride: params.Stride) -> PersonLab:
    """Load a checkpoint as a network in evaluation mode, at any output stride.

    Raises:
        UserError: the weights or their card cannot be read, or are not a PersonLab network's.
    """
    saved = _read(path)
    network = PersonLab(
        saved.model, stride=stride, skeleton=saved.skeleton, masks=saved.masks, decode=saved.decode
    )
    _fit(network, saved.state, path)
    return network.eval()


def _fit(network: PersonLab, state: dict[str, Tensor], path: Path) -> None:
    """Load a state dict, without the heads of masks if the network has none.

    Imported weights have no intermediate heads: the network loses its own.
    """
    if not network.masks:
        state = {name: each for name, each in state.items() if not _OF_MASKS.match(name)}
    if not any(name.startswith(_INTERMEDIATE) for name in state):
        network.intermediate = None
    checkpoint.fit(network, state, path)


@dataclass(frozen=True)
class _Saved:
    """A checkpoint's weights and the contents of its card."""

    state: dict[str, Tensor]
    model: params.Model
    skeleton: Skeleton
    decode: params.Decode | None  # None until `infer` has predicted with the model
    masks: bool


def _check_trainable(saved: _Saved, network: PersonLab, path: Path) -> None:
    model = network.model
    given, wanted = ((m.backbone, m.width) for m in (saved.model, model))
    if given != wanted:
        raise UserError(
            f"{path}: a {given[0]} of width {given[1]}, not a {wanted[0]} of width {wanted[1]}: "
            "set model.backbone and model.width to its own"
        )
    if saved.model.radius != model.radius:
        raise UserError(
            f"{path}: trained with model.radius {saved.model.radius:g}, not {model.radius:g}, the unit of "
            "its offsets: use the same radius, or set model.init_heads to false"
        )
    if network.masks and not saved.masks:
        raise UserError(
            f"{path}: finds poses only, and training needs heads for masks too: use other weights, or set "
            "model.init_heads to false"
        )


def _read(path: Path) -> _Saved:
    state, card = checkpoint.load(path)
    sidecar = path.with_suffix(".json")
    if card.get("format") != _FORMAT:
        raise UserError(f"{sidecar}: format {card.get('format')!r}, not {_FORMAT!r}: not a PersonLab network")
    skeleton = Skeleton.of_card(card, sidecar)
    settings = checkpoint.parameters(card, "model", sidecar)
    fields = card.get("fields", list(FIELDS))  # the first cards lack the key
    if fields not in (list(FIELDS), list(_POSES)):
        raise UserError(f"{sidecar}: fields {fields!r}, neither {list(FIELDS)} nor {list(_POSES)}")
    decode = settings.decode if {"decode", "codec"} & card.keys() else None
    return _Saved(state, settings.model, skeleton, decode, masks="seg" in fields)
