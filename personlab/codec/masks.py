"""Instance masks: which person pixels belong to which detected person (paper, section 3.2, equation 6)."""

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from personlab.codec.fields import Fields
from personlab.codec.loops import Array, array, cell_at, compiled, sample

# A pixel shows a person where p_S is at least this.
PERSON: Final = 0.5


def refine_long(fields: Fields, steps: int) -> Fields:
    """Equation 5 at person cells, as `refine.refine` computes it everywhere; other cells are undefined."""
    seg, long, short = (array(field[0]) for field in (fields.seg, fields.long, fields.short))
    refined = _refine_long(seg, long, short, steps, fields.stride)
    return fields.replace(long=torch.from_numpy(refined)[None])


@compiled
def _refine_long(seg: Array, long: Array, short: Array, steps: int, stride: int) -> Array:
    """`steps` times L_k(x) <- x' + L_k(x'), then `steps` times L_k(x) <- x' + S_k(x').

    The first kind samples its own field, so all cells are needed until its last step.
    """
    for step in range(steps):
        long = _follow(seg, long, long, stride, PERSON if step == steps - 1 else -np.inf)
    for _ in range(steps):
        long = _follow(seg, long, short, stride, PERSON)
    return long


@compiled
def _follow(seg: Array, offsets: Array, field: Array, stride: int, least: float) -> Array:
    """Offsets (K x 2 x H x W) plus the field where they end, at cells where `seg` is at least `least`."""
    kinds, _, height, width = offsets.shape
    further = np.zeros_like(offsets)
    for row in range(height):
        for column in range(width):
            if seg[row, column] < least:
                continue
            for k in range(kinds):
                dx, dy = offsets[k, 0, row, column], offsets[k, 1, row, column]
                cell = cell_at(column + dx / stride, row + dy / stride, height, width)
                further[k, 0, row, column] = dx + sample(field[k, 0], cell)
                further[k, 1, row, column] = dy + sample(field[k, 1], cell)
    return further


def embedding_distance(fields: Fields, keypoints: Tensor, presence: Tensor, lambdas: Tensor) -> Tensor:
    """Equation 6: the distance of every cell's embedding from every person, relative to the person's size.

        D_j(x) = sum_k p_k(y_jk) |G_k(x) - y_jk| / (lambda_j sum_k p_k(y_jk)),  G_k(x) = x + L_k(x)

    fields: one image, long-range offsets refined; keypoints N x K x 2 in input pixels; presence N x K;
    lambdas N, input pixels. Returns N x H x W; infinite at cells that show no person, and for a pose without
    any present keypoint.
    """
    weight = presence / presence.sum(1, keepdim=True).clamp(min=1e-6) / lambdas[:, None]
    seg, long = array(fields.seg[0]), array(fields.long[0])
    distance = _embedding_distance(seg, long, array(keypoints), array(weight), fields.stride)
    return torch.from_numpy(distance)


@compiled
def _embedding_distance(seg: Array, long: Array, keypoints: Array, weight: Array, stride: int) -> Array:
    """`weight` (N x K) is the presence over its sum and lambda."""
    people, kinds = weight.shape
    height, width = seg.shape
    distance = np.full((people, height, width), np.inf, seg.dtype)
    for n in range(people):
        if weight[n].sum() == 0:
            continue
        for row in range(height):
            for column in range(width):
                if seg[row, column] < PERSON:
                    continue
                total = 0.0
                for k in range(kinds):
                    x = column * stride + long[k, 0, row, column] - keypoints[n, k, 0]
                    y = row * stride + long[k, 1, row, column] - keypoints[n, k, 1]
                    total += weight[n, k] * math.sqrt(x * x + y * y)
                distance[n, row, column] = total
    return distance


def mean_distance(distance: Tensor, threshold: float) -> Tensor:
    """The mean of each person's distances (N x H x W) within the threshold: N; infinite without any."""
    near = distance <= threshold
    total = torch.where(near, distance, 0.0).sum((1, 2))
    return torch.where(near.any(2).any(1), total / near.sum((1, 2)), torch.inf)


def full_resolution(
    seg: Tensor, distance: Tensor, *, step: float, height: int, width: int, threshold: float
) -> Tensor:
    """The mask of one person over the whole image, height x width bool.

    seg and distance (H x W) are on the output cells; image pixel (x, y) is cell (step * x, step * y).
    Both are interpolated bilinearly before they are cut at 0.5 and `threshold`. The distance is interpolated
    among person cells alone, since it means nothing elsewhere, and counts as at most twice the threshold: the
    border between two people then lies half-way between their cells, however far apart they are. Pixels
    belong to every person close enough: the assignment is not exclusive.
    """
    return torch.from_numpy(_mask(array(seg), array(distance), step, height, width, threshold))


@compiled
def _mask(
    seg: Array, distance: Array, step: float, height: int, width: int, threshold: float
) -> npt.NDArray[np.bool_]:
    """One person's mask. Where all four cells around a pixel agree, nothing is interpolated."""
    rows, columns = seg.shape
    mask = np.zeros((height, width), np.bool_)
    near = distance <= threshold  # only person cells can be: others are infinitely far
    lefts = np.minimum((np.arange(width) * step).astype(np.int64), columns - 1)
    firsts = np.searchsorted(lefts, np.arange(columns + 1))  # the pixels between cells j and j + 1
    has_near = np.array([near[row].any() for row in range(rows)])
    for y in range(height):
        v = min(y * step, rows - 1.0)
        top = int(v)
        bottom, below = min(top + 1, rows - 1), v - top
        if not (has_near[top] or has_near[bottom]):
            continue
        for left in range(columns):
            right = min(left + 1, columns - 1)
            count = near[top, left] + near[top, right] + near[bottom, left] + near[bottom, right]
            if count == 4:
                mask[y, firsts[left] : firsts[left + 1]] = True
            elif count > 0:
                here = _between(seg, distance, top, bottom, below, left, threshold)
                there = _between(seg, distance, top, bottom, below, right, threshold)
                for x in range(firsts[left], firsts[left + 1]):
                    beside = min(x * step, columns - 1.0) - left
                    p = (1 - beside) * here[0] + beside * there[0]
                    share = (1 - beside) * here[1] + beside * there[1]
                    total = (1 - beside) * here[2] + beside * there[2]
                    mask[y, x] = share > 0 and p >= PERSON and total <= threshold * share
    return mask


@compiled
def _between(
    seg: Array, distance: Array, top: int, bottom: int, below: float, column: int, threshold: float
) -> tuple[float, float, float]:
    """Between two cells of a column: p_S, the share of person cells, and their distance times that share."""
    p = share = total = 0.0
    for row, weight in ((top, 1 - below), (bottom, below)):
        p += weight * seg[row, column]
        if seg[row, column] >= PERSON:
            share += weight
            total += weight * min(distance[row, column], 2 * threshold)
    return p, share, total
