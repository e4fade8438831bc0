"""The single-person pose estimator that imputes keypoints (G-RMI: Papandreou et al. 2017, section 3.2).

It looks at a crop around one person and predicts, for every keypoint, a heatmap (is it within R of this
cell?) and offsets to it; Hough voting fuses the two into a precise position. Unlike PersonLab's own fields
these are about one person: others in the crop are background.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from personlab import params
from personlab.codec.fields import cell_positions
from personlab.codec.hough import accumulator, cast_votes
from personlab.codec.loops import array
from personlab.data.transform import ImageArray, Transform
from personlab.errors import UserError
from personlab.model import backbones as backbone
from personlab.model import checkpoint
from personlab.model.backbones.resnet import Normalise
from personlab.people import FloatArray
from personlab.skeleton import KEYPOINTS, K

# G-RMI weighs the heatmap's loss four times the offsets'.
_HEATMAP_WEIGHT: Final = 4.0
# Accumulator bins of the decoder, in crop pixels: wide enough that votes which agree meet in one place.
_BIN: Final = 4.0

_FORMAT: Final = "personlab-estimator-1"


@dataclass(frozen=True)
class PersonFields:
    """What the estimator predicts of a batch of crops; B x K x H x W cells."""

    heatmap: Tensor  # B x K x H x W, logits
    short: Tensor  # B x K x 2 x H x W, keypoint - cell, (x, y) in crop pixels


class Estimator(nn.Module):
    """An atrous backbone with one 1x1 convolution per field.

    settings: the network, its stride, the crop's size and the radius R of the disks.
    """

    def __init__(self, settings: params.Estimator) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = backbone.make(
            settings.backbone,
            width=settings.width,
            stride=settings.stride,
            freeze_bn=settings.init is not None,
        )
        channels = self.backbone.channels[1]
        self.heatmap = nn.Conv2d(channels, K, 1)
        self.short = nn.Conv2d(channels, 2 * K, 1)
        self.normalise = Normalise(*self.backbone.pixels)
        # Training starts from heatmaps that are almost nowhere 1, as they are.
        prior = math.pi * settings.radius**2 / (settings.crop_height * settings.crop_width)
        nn.init.constant_(self.heatmap.bias, math.log(prior / (1 - prior)))  # type: ignore[arg-type]

    def forward(self, crops: Tensor) -> PersonFields:
        """crops: B x 3 x crop_height x crop_width RGB, uint8 or floats in 0..255."""
        images = self.normalise(crops)
        features = self.backbone(images.contiguous(memory_format=torch.channels_last))[1]
        # The convolution's unit is the radius, so that training moves numbers of about 1.
        short = self.short(features).unflatten(1, (K, 2)).float() * self.settings.radius
        return PersonFields(heatmap=self.heatmap(features).float(), short=short)

    def loss(self, fields: PersonFields, keypoints: Tensor, labelled: Tensor) -> Tensor:
        """Logistic loss over all cells plus L1 / R of the offsets on the disks.

        keypoints: B x K x 2 crop pixels; labelled: B x K. Unlabelled keypoints define nothing.
        """
        height, width = fields.heatmap.shape[-2:]
        position = cell_positions(height, width, self.settings.stride, keypoints.device)
        towards, disk = person_targets(keypoints, labelled, position, radius=self.settings.radius)
        logistic = F.binary_cross_entropy_with_logits(fields.heatmap, disk.float(), reduction="none")
        heatmap = logistic.mean((-1, -2))[labelled].sum() / labelled.sum().clamp(min=1)
        distance = (fields.short - towards).abs().sum(2)[disk].sum() / self.settings.radius
        return _HEATMAP_WEIGHT * heatmap + distance / disk.sum().clamp(min=1)

    @torch.inference_mode()
    def estimate(self, crops: Sequence[ImageArray], transforms: Sequence[Transform]) -> FloatArray:
        """Keypoints of people whose crops (see `data.crops`) these are: N x K x 3.

        x and y are pixels of the image that the transform looks at, the third is the confidence.
        """
        batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(self.heatmap.weight.device)
        settings = self.settings
        found: FloatArray = decode(self(batch), settings).numpy()
        for keypoints, transform in zip(found, transforms, strict=True):
            keypoints[:, :2] = transform.inverse_points(keypoints[:, :2])
        return found

    def card(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """The card of a checkpoint: all that `from_checkpoint` needs.

        training: where the weights come from, for people to read.
        """
        return {
            "format": _FORMAT,
            "estimator": self.settings.model_dump(),
            "skeleton": list(KEYPOINTS),
            "training": dict(training),
        }


def build(settings: params.Estimator, root: Path = Path()) -> Estimator:
    """An estimator to train: random weights, or a backbone from `settings.init`, a path relative to `root`.

    Raises:
        UserError: `settings.init` cannot be read or does not fit the backbone.
    """
    estimator = Estimator(settings)
    if settings.init is not None:
        backbone.load(estimator.backbone, root / settings.init)
    return estimator


def from_checkpoint(path: Path) -> Estimator:
    """The estimator saved at `path` (*.safetensors), ready to estimate.

    Raises:
        UserError: the file cannot be read, or is not an estimator of this skeleton.
    """
    state, card = checkpoint.load(path)
    if card.get("format") != _FORMAT or card.get("skeleton") != list(KEYPOINTS):
        raise UserError(f"{path}: not an estimator of this version; run the estimator stage again")
    if not isinstance(card.get("estimator"), dict):
        raise UserError(f"{path}: its card describes no estimator (no 'estimator')")
    try:
        settings = params.from_saved(card).estimator
    except ValidationError as error:
        raise UserError(f"{path}: its card describes no estimator of this version: {error}") from None
    estimator = Estimator(settings)
    checkpoint.fit(estimator, state, path)
    return estimator.eval()


def person_targets(
    keypoints: Tensor, labelled: Tensor, position: Tensor, *, radius: float
) -> tuple[Tensor, Tensor]:
    """Offsets to the keypoints, B x K x 2 x H x W, and the disks on which they count, B x K x H x W.

    The disks are also the heatmap's targets. keypoints: B x K x 2 crop pixels; labelled: B x K; position:
    2 x H x W of the output cells.
    """
    towards = keypoints[..., None, None] - position
    return towards, (towards.square().sum(2) <= radius**2) & labelled[..., None, None]


def decode(fields: PersonFields, settings: params.Estimator) -> Tensor:
    """Where the votes of all cells meet: B x K x 3 of x, y in crop pixels and confidence in [0, 1].

    The position is the centre of the 3 x 3 bins around the fullest bin of the Hough accumulator, the
    confidence the votes in them: about 1 if a whole disk of certain votes agrees. No votes: position 0, 0.
    """
    weight = settings.stride**2 / (math.pi * settings.radius**2)
    found = []
    for heatmap, short in zip(array(fields.heatmap.sigmoid()), array(fields.short), strict=True):
        score = accumulator(K, settings.crop_height, settings.crop_width, _BIN, heatmap.dtype)
        cast_votes(score, heatmap, short, settings.stride, 1 / _BIN, weight, 0.0, math.inf)
        found.append(_peaks(torch.from_numpy(score)))
    return torch.stack(found)


def _peaks(score: Tensor) -> Tensor:
    """The one peak of each of K score maps: K x 3 of x, y in pixels and mass."""
    best, columns = score.flatten(1).argmax(1), score.shape[-1]
    steps = torch.tensor([-1, 0, 1])
    row, column = (best // columns)[:, None] + steps, (best % columns)[:, None] + steps  # K x 3
    kind = torch.arange(K)[:, None, None]
    window = F.pad(score, (1, 1, 1, 1))[kind, row[:, :, None] + 1, column[:, None] + 1]
    mass = window.sum((1, 2))
    x = (window.sum(1) * column).sum(1) / mass.clamp(min=1e-12)
    y = (window.sum(2) * row).sum(1) / mass.clamp(min=1e-12)
    return torch.stack((x * _BIN, y * _BIN, mass.clamp(max=1.0)), -1)
