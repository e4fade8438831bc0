"""Hough voting (paper, equation 1): heatmaps and short-range offsets become score maps, and their maxima.

    h_k(x) = 1 / (pi R^2) * sum_i p_k(x_i) B(x_i + S_k(x_i) - x)

The sum runs over pixels; an output cell stands for stride^2 of them, so that a perfectly localised keypoint
scores about 1 at any stride. B is the bilinear kernel of the accumulator, whose bins are `bin` pixels wide:
finer than the output, coarser than the image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from personlab.codec.loops import Array, Index, array, compiled
from personlab.codec.pyramid import Frame, Level, weights

# Fainter votes are not cast. A whole disk of them adds up to at most half the default seed threshold, 0.01,
# and there are twenty times more of them than of all others.
FAINTEST_VOTE: Final = 0.005

# Votes are added in any order; scores are rounded to the digits that this leaves.
SCORE_DECIMALS: Final = 6


@dataclass(frozen=True)
class HoughMap:
    """Score maps of one image; bin (i, j) is centred on pixel (bin * j, bin * i)."""

    score: Tensor  # K x bins high x bins wide
    bin: float  # pixels


@dataclass(frozen=True)
class Seeds:
    """Candidate keypoints of one image, best first."""

    xy: Tensor  # N x 2, pixels
    kind: Tensor  # N, keypoint index
    score: Tensor  # N


def accumulator(kinds: int, height: float, width: float, bin: float, dtype: np.dtype[np.floating]) -> Array:
    """Empty score maps for height x width pixels: K x bins high x bins wide."""
    return np.zeros((kinds, *(math.ceil((side - 1) / bin) + 1 for side in (height, width))), dtype)


def vote(
    levels: Sequence[Level], frame: Frame, *, radius: float, bin: float, threshold: float
) -> tuple[HoughMap, Seeds]:
    """Accumulate the votes of all levels, each with its weight, and find the local maxima (`find_seeds`)."""
    heatmap = array(levels[0].fields.heatmap)
    score = accumulator(heatmap.shape[1], frame.height, frame.width, bin, heatmap.dtype)
    reached = []
    for level, weight in zip(levels, weights(levels), strict=True):
        fields, to_bins = level.fields, frame.scale / level.scale / bin
        vote_weight = weight * fields.stride**2 / (math.pi * radius**2)
        heatmap, short = array(fields.heatmap[0]), array(fields.short[0])
        reached.append(
            cast_votes(score, heatmap, short, fields.stride, to_bins, vote_weight, FAINTEST_VOTE, threshold)
        )
    hough = HoughMap(torch.from_numpy(score), bin)
    return hough, find_seeds(hough, np.concatenate(reached))


@compiled
def cast_votes(
    score: Array,  # K x bins high x bins wide, is added to
    heatmap: Array,  # K x H x W
    short: Array,  # K x 2 x H x W
    stride: int,
    to_bins: float,  # bins per input pixel
    weight: float,  # of a vote of probability 1
    faintest: float,
    threshold: float,
) -> Index:
    """Equation 1: add the vote of every cell, bilinearly; votes outside the map are lost.

    Returns the bins (flat indices) that these votes lift above the threshold. Votes only add, so a bin
    crosses the threshold once, and the maps need not be searched for the bins above it.
    """
    kinds, height, width = heatmap.shape
    rows, columns = score.shape[1:]
    flat = score.reshape(-1)
    reached = np.empty(len(flat) + 1, np.int64)  # memory that is never touched is never allocated
    count = 0
    for k in range(kinds):
        for row in range(height):
            for column in range(width):
                p = heatmap[k, row, column]
                if p <= faintest:
                    continue
                x = (column * stride + short[k, 0, row, column]) * to_bins
                y = (row * stride + short[k, 1, row, column]) * to_bins
                if not (-1 < x < columns and -1 < y < rows):
                    continue
                left, top = math.floor(x), math.floor(y)
                across, down = x - left, y - top
                corner = (k * rows + top) * columns + left
                for below in range(2):
                    for beside in range(2):
                        if 0 <= top + below < rows and 0 <= left + beside < columns:
                            share = (across if beside else 1 - across) * (down if below else 1 - down)
                            at = corner + below * columns + beside
                            before = flat[at]
                            after = before + p * weight * share
                            flat[at] = after
                            reached[count] = at  # counted only if it crosses: a branch is mispredicted
                            count += (before <= threshold) & (after > threshold)
    return reached[:count].copy()


def find_seeds(hough: HoughMap, bins: Index) -> Seeds:
    """The local maxima among `bins` (flat indices), placed at the centroid of their 3 x 3 bins.

    A seed's score is the sum of these bins: a single bin holds all of a keypoint's votes if they point at its
    centre, and a quarter of them if they point between four bins. Equal scores are in reading order.
    """
    score = array(hough.score)
    rows, columns = score.shape[1:]
    xy, at, mass = _peaks(score, bins)
    mass = mass.round(SCORE_DECIMALS)
    order = np.lexsort((at, -mass))
    found = (xy * score.dtype.type(hough.bin), at // (rows * columns), mass)
    return Seeds(*(torch.from_numpy(column[order]) for column in found))


@compiled
def _peaks(score: Array, bins: Index) -> tuple[Array, Index, Array]:
    """The local maxima among the bins (flat indices): centroid (N x 2, bins), flat index, mass."""
    _, rows, columns = score.shape
    xy, peaks = np.empty((len(bins), 2), score.dtype), np.empty(len(bins), np.int64)
    masses = np.empty(len(bins), score.dtype)
    count = 0
    for at in bins:
        line, column = divmod(at, columns)
        k, row = divmod(line, rows)
        if not _is_peak(score[k], row, column):
            continue
        mass = dx = dy = 0.0
        for i in range(max(row - 1, 0), min(row + 2, rows)):
            for j in range(max(column - 1, 0), min(column + 2, columns)):
                mass += score[k, i, j]
                dx += score[k, i, j] * (j - column)
                dy += score[k, i, j] * (i - row)
        xy[count, 0], xy[count, 1] = column + dx / mass, row + dy / mass
        peaks[count], masses[count] = at, mass
        count += 1
    return xy[:count], peaks[:count], masses[:count]


@compiled
def _is_peak(score: Array, row: int, column: int) -> bool:
    """Of equal neighbours the first in reading order is the maximum."""
    rows, columns = score.shape
    centre = score[row, column]
    for i in range(max(row - 1, 0), min(row + 2, rows)):
        for j in range(max(column - 1, 0), min(column + 2, columns)):
            is_before = i < row or (i == row and j < column)
            if score[i, j] > centre or (is_before and score[i, j] == centre):
                return False
    return True


@compiled
def bins_between(low: float, high: float, bin: float, bins: int) -> tuple[int, int]:
    """The bins, first and one past the last, whose centres lie from `low` to `high` pixels."""
    first = min(max(0.0, math.ceil(low / bin)), float(bins))
    last = min(max(-1.0, math.floor(high / bin)), bins - 1.0)
    return int(first), max(int(first), int(last) + 1)
