"""The single-person pose estimator that imputes keypoints (G-RMI: Papandreou et al. 2017, section 3.2).

From a crop around one person it predicts, for every keypoint, a heatmap (the probability that the keypoint is
within R of a cell) and offsets to it; Hough voting combines the two to a position. Other people in the crop
are background.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personlab import params
from personlab.codec.fields import cell_positions
from personlab.codec.hough import accumulator, cast_votes
from personlab.codec.loops import array
from personlab.data.transform import ImageArray, Transform
from personlab.errors import UserError, first
from personlab.model import backbones as backbone
from personlab.model import checkpoint
from personlab.people import FloatArray
from personlab.skeleton import Skeleton

# Weight of the heatmap loss against the offset loss (G-RMI).
_HEATMAP_WEIGHT: Final = 4.0
# Width of a bin of the Hough accumulator, crop pixels: wide enough for votes that agree to share bins.
_BIN: Final = 4.0

_FORMAT: Final = "personlab-estimator-1"


@dataclass(frozen=True)
class PersonFields:
    """The estimator's output for a batch of crops."""

    heatmap: Tensor  # B x K x H x W, logits
    short: Tensor  # B x K x 2 x H x W, keypoint - cell, (x, y) in crop pixels


class Estimator(nn.Module):
    """An atrous backbone with one 1x1 convolution per field."""

    def __init__(self, settings: params.Estimator, skeleton: Skeleton) -> None:
        super().__init__()
        self.settings, self.skeleton = settings, skeleton
        self.backbone = backbone.make(
            settings.backbone,
            width=settings.width,
            stride=settings.stride,
            freeze_bn=settings.init is not None,
        )
        channels = self.backbone.channels[1]
        self.heatmap = nn.Conv2d(channels, len(skeleton.keypoints), 1)
        self.short = nn.Conv2d(channels, 2 * len(skeleton.keypoints), 1)
        self.normalise = backbone.Normalise(self.backbone)
        # Initial heatmap probability: the share of the crop that a disk covers.
        prior = math.pi * settings.radius**2 / (settings.crop_height * settings.crop_width)
        nn.init.constant_(self.heatmap.bias, math.log(prior / (1 - prior)))  # type: ignore[arg-type]

    def forward(self, crops: Tensor) -> PersonFields:
        """The fields of B x 3 x crop_height x crop_width RGB crops, uint8 or floats in 0..255."""
        features = self.backbone(self.normalise(crops))[1]
        # the convolution predicts in units of R, so that its outputs are of about 1
        short = self.short(features).unflatten(1, (-1, 2)).float() * self.settings.radius
        return PersonFields(heatmap=self.heatmap(features).float(), short=short)

    def loss(self, fields: PersonFields, keypoints: Tensor, labelled: Tensor) -> Tensor:
        """Logistic loss over all cells plus L1 / R of the offsets on the disks.

        keypoints: B x K x 2 crop pixels; labelled: B x K. Unlabelled keypoints are left out.
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
        """The keypoints of N people: N x K x 3 of x, y (pixels of the original image) and confidence.

        transforms: from the original image to each crop (see `data.crops`).
        """
        batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(self.heatmap.weight.device)
        found: FloatArray = decode(self(batch), self.settings).numpy()
        for keypoints, transform in zip(found, transforms, strict=True):
            keypoints[:, :2] = transform.inverse_points(keypoints[:, :2])
        return found

    def card(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """The card of a checkpoint; `training` is the provenance of the weights, for information only."""
        return {
            "format": _FORMAT,
            "estimator": self.settings.model_dump(),
            "skeleton": list(self.skeleton.keypoints),
            "training": dict(training),
        }


def build(settings: params.Estimator, root: Path = Path(), *, skeleton: Skeleton) -> Estimator:
    """An estimator to train; its backbone has random weights or those of `settings.init`, relative to `root`.

    Raises:
        UserError: `settings.init` cannot be read or does not fit the backbone.
    """
    estimator = Estimator(settings, skeleton)
    if settings.init is not None:
        backbone.load(estimator.backbone, root / settings.init)
    return estimator


def from_checkpoint(path: Path, skeleton: Skeleton) -> Estimator:
    """Load a checkpoint (*.safetensors) as an estimator in evaluation mode.

    Raises:
        UserError: the file cannot be read, or is not an estimator of this skeleton.
    """
    state, card = checkpoint.load(path)
    if card.get("format") != _FORMAT or card.get("skeleton") != list(skeleton.keypoints):
        raise UserError(
            f"{path}: not an estimator of this version, or not of the keypoints {first(skeleton.keypoints)}; "
            "run the estimator stage again"
        )
    settings = checkpoint.parameters(card, "estimator", path.with_suffix(".json")).estimator
    estimator = Estimator(settings, skeleton)
    checkpoint.fit(estimator, state, path)
    return estimator.eval()


def person_targets(
    keypoints: Tensor, labelled: Tensor, position: Tensor, *, radius: float
) -> tuple[Tensor, Tensor]:
    """Target offsets (B x K x 2 x H x W) and the disks where they are defined (B x K x H x W).

    The disks are also the heatmap targets. keypoints: B x K x 2 crop pixels; labelled: B x K; position:
    2 x H x W, of the output cells.
    """
    towards = keypoints[..., None, None] - position
    return towards, (towards.square().sum(2) <= radius**2) & labelled[..., None, None]


def decode(fields: PersonFields, settings: params.Estimator) -> Tensor:
    """Hough voting: B x K x 3 of x, y in crop pixels and confidence in [0, 1].

    The position is the centroid of the 3 x 3 bins around the accumulator's maximum, the confidence their sum:
    about 1 if a whole disk of certain votes agrees. Without any votes the position is (0, 0).
    """
    weight = settings.stride**2 / (math.pi * settings.radius**2)
    found = []
    for heatmap, short in zip(array(fields.heatmap.sigmoid()), array(fields.short), strict=True):
        score = accumulator(len(heatmap), settings.crop_height, settings.crop_width, _BIN, heatmap.dtype)
        cast_votes(score, heatmap, short, settings.stride, 1 / _BIN, weight, 0.0, math.inf)
        found.append(_peaks(torch.from_numpy(score)))
    return torch.stack(found)


def _peaks(score: Tensor) -> Tensor:
    """Centroid and sum of the 3 x 3 bins around the maximum of each of K maps: K x 3 of x, y (pixels),
    sum."""
    best, columns = score.flatten(1).argmax(1), score.shape[-1]
    steps = torch.tensor([-1, 0, 1])
    row, column = (best // columns)[:, None] + steps, (best % columns)[:, None] + steps  # K x 3
    kind = torch.arange(len(score))[:, None, None]
    window = F.pad(score, (1, 1, 1, 1))[kind, row[:, :, None] + 1, column[:, None] + 1]
    mass = window.sum((1, 2))
    x = (window.sum(1) * column).sum(1) / mass.clamp(min=1e-12)
    y = (window.sum(2) * row).sum(1) / mass.clamp(min=1e-12)
    return torch.stack((x * _BIN, y * _BIN, mass.clamp(max=1.0)), -1)
