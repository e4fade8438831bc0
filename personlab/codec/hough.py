"""Hough voting (paper, equation 1): heatmaps and short-range offsets become sharp score maps.

    h_k(x) = 1 / (pi R^2) * sum_i p_k(x_i) B(x_i + S_k(x_i) - x)

The sum runs over pixels; output cells stand for stride^2 of them each, so every vote weighs that much and
a perfectly localised keypoint scores about 1 at any stride. B is the bilinear kernel of the accumulator,
whose bins are `bin` pixels wide: finer than the output, coarser than the image.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from personlab.codec.fields import Fields
from personlab.skeleton import K

# Votes fainter than this are not cast. A whole disk of them would add up to less than half the seed
# threshold of 0.01, and there are twenty times more of them than of all others.
FAINTEST_VOTE = 0.005


@dataclass(frozen=True)
class Votes:
    """Votes of one image, each for one keypoint at one place."""

    xy: Tensor  # N x 2, pixels
    kind: Tensor  # N, keypoint index
    weight: Tensor  # N


@dataclass(frozen=True)
class HoughMap:
    """Score maps of one image; bin (i, j) is centred on pixel (bin * j, bin * i)."""

    score: Tensor  # K x bins high x bins wide
    bin: float  # pixels


def cast_votes(fields: Fields, *, radius: float) -> Votes:
    """Every cell's vote for every keypoint, in input pixels. `fields`: one image, probabilities."""
    probability = fields.heatmap[0]
    kind, row, column = torch.nonzero(probability > FAINTEST_VOTE, as_tuple=True)
    position = torch.stack((column, row), -1) * float(fields.stride)
    offset = fields.short[0].permute(0, 2, 3, 1)[kind, row, column]
    area = fields.stride**2 / (math.pi * radius**2)
    return Votes(xy=position + offset, kind=kind, weight=probability[kind, row, column] * area)


def accumulate(votes: Votes, *, height: float, width: float, bin: float) -> HoughMap:
    """Sum the votes bilinearly; those that land outside the height x width pixels are lost."""
    rows, columns = math.ceil((height - 1) / bin) + 1, math.ceil((width - 1) / bin) + 1
    # A margin all round (one bin before, two after) takes the votes from outside, and is cut away.
    high, wide = rows + 3, columns + 3
    flat = votes.weight.new_zeros(K * high * wide)
    x = (votes.xy[:, 0] / bin + 1).clamp(0, columns + 1)
    y = (votes.xy[:, 1] / bin + 1).clamp(0, rows + 1)
    left, top = x.long(), y.long()
    right_share, bottom_share = x - left, y - top
    corner = (votes.kind * high + top) * wide + left
    for down, vertical in ((0, 1 - bottom_share), (1, bottom_share)):
        for across, horizontal in ((0, 1 - right_share), (1, right_share)):
            flat.index_add_(0, corner + (down * wide + across), votes.weight * vertical * horizontal)
    return HoughMap(score=flat.view(K, high, wide)[:, 1:-2, 1:-2].contiguous(), bin=bin)
