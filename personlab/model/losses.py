"""The losses of training (paper, sections 3.1 to 3.3 and 4.1).

Heatmaps and segmentation: mean of -(w y log p + (1 - y) log(1 - p)) over the valid positions, where p is the
predicted probability, y the target, of the segmentation a share of the cell, and w is `pos_weight`, 1 in the
paper. Offsets: mean L1 distance in units of R over the positions where they are defined. Values at other
positions do not matter, NaN included; a loss that is defined nowhere is 0 with gradient 0. All losses are
computed in float32.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from personlab import params
from personlab.codec.fields import Fields, Targets
from personlab.codec.refine import STEPS, refine
from personlab.skeleton import Skeleton


@dataclass(frozen=True)
class Losses:
    """The five losses of a batch, scalars, in the paper's order."""

    heatmap: Tensor
    seg: Tensor
    short: Tensor
    mid: Tensor
    long: Tensor

    def total(self, weights: params.LossWeights) -> Tensor:
        """The weighted sum."""
        return torch.stack([getattr(weights, name) * loss for name, loss in vars(self).items()]).sum()


@dataclass(frozen=True)
class Objective:
    """The losses of refined offsets, and their weights."""

    radius: float  # R, input pixels
    weights: params.LossWeights
    steps: int  # of offset refinement; 0 without refinement
    skeleton: Skeleton
    pos_weight: float = 1.0  # of positive targets in the logistic losses

    @classmethod
    def of(cls, model: params.Model, train: params.Train, skeleton: Skeleton) -> Self:
        steps = STEPS if model.refine else 0
        return cls(model.radius, train.loss_weights, steps, skeleton, train.pos_weight)

    def __call__(self, predicted: Fields, targets: Targets, counts: Tensor | None = None) -> Losses:
        """The losses of the network's raw output, float32 also under autocast; `counts` as for `losses`."""
        with torch.autocast(predicted.heatmap.device.type, enabled=False):
            refined = refine(
                predicted.float(), mid_steps=self.steps, long_steps=self.steps, skeleton=self.skeleton
            )
            return losses(refined, targets, radius=self.radius, pos_weight=self.pos_weight, counts=counts)


def losses(
    predicted: Fields,
    targets: Targets,
    *,
    radius: float,
    pos_weight: float = 1.0,
    counts: Tensor | None = None,
) -> Losses:
    """The five losses of a batch of fields; heatmap and seg are logits, offsets are refined already.

    Without fields for masks, the losses of seg and long are 0.

    Args:
        radius: R in input pixels, the unit of the offset losses.
        pos_weight: weight of positive targets in the logistic losses. It multiplies the odds p / (1 - p) at
            which the loss is least.
        counts: divisors of the five sums over positions (5), if the batch is a share of a larger one.
            Default: the batch's own `positions`.
    """
    predicted, wanted = predicted.float(), targets.fields.float()
    heatmap, seg, short, mid, long = positions(targets).clamp(min=1) if counts is None else counts
    if not predicted.has_masks:
        wanted = wanted.replace(seg=predicted.seg, long=predicted.long)
        targets = replace(
            targets, seg_valid=predicted.seg > 0, long_valid=predicted.long[:, :, 0] > 0
        )  # no cells
    return Losses(
        heatmap=_logistic(predicted.heatmap, wanted.heatmap, targets.heatmap_valid, pos_weight) / heatmap,
        seg=_logistic(predicted.seg, wanted.seg, targets.seg_valid, pos_weight) / seg,
        short=_distance(predicted.short, wanted.short, targets.short_valid) / short / radius,
        mid=_distance(predicted.mid, wanted.mid, targets.mid_valid) / mid / radius,
        long=_distance(predicted.long, wanted.long, targets.long_valid) / long / radius,
    )


def positions(targets: Targets) -> Tensor:
    """Number of positions that each loss is averaged over, in their order (5, int64); may be 0."""
    valid = (
        *(targets.heatmap_valid, targets.seg_valid),
        *(targets.short_valid, targets.mid_valid, targets.long_valid),
    )
    return torch.stack([each.sum() for each in valid])


def _logistic(logits: Tensor, wanted: Tensor, valid: Tensor, pos_weight: float) -> Tensor:
    """Sum of the logistic loss where `valid`; the tensors are of one shape."""
    each = F.binary_cross_entropy_with_logits(
        logits.where(valid, 0.0),
        wanted.where(valid, 0.0),
        reduction="none",
        pos_weight=logits.new_full((), pos_weight),
    )
    return each.where(valid, 0.0).sum()


def _distance(offsets: Tensor, wanted: Tensor, valid: Tensor) -> Tensor:
    """Sum of |dx| + |dy| in pixels where `valid`; offsets B x N x 2 x H x W, valid B x N x H x W."""
    return (offsets - wanted).where(valid[:, :, None], 0.0).abs().sum()
