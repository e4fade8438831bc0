"""Masks as loops: offsets are refined at person cells, and only the rims of masks are interpolated."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from personlab.codec.compiled.arrays import Array, array, cell_at, sample
from personlab.codec.fields import Fields
from personlab.codec.masks import PERSON
from personlab.skeleton import K


def refine_long(fields: Fields, steps: int) -> Fields:
    seg, long, short = (array(field[0]) for field in (fields.seg, fields.long, fields.short))
    refined = _refine_long(seg, long, short, steps, fields.stride, PERSON)
    return fields.replace(long=torch.from_numpy(refined)[None])


def embedding_distance(fields: Fields, keypoints: Tensor, present: Tensor, lambdas: Tensor) -> Tensor:
    weight = present / present.sum(1, keepdim=True).clamp(min=1e-6) / lambdas[:, None]
    seg, long = array(fields.seg[0]), array(fields.long[0])
    return torch.from_numpy(
        _embedding_distance(seg, long, array(keypoints), array(weight), fields.stride, PERSON)
    )


def full_resolution(
    seg: Tensor, distance: Tensor, *, step: float, height: int, width: int, threshold: float
) -> Iterator[Tensor]:
    for away in distance:
        yield torch.from_numpy(_mask(array(seg), array(away), step, height, width, threshold, PERSON))


@njit(cache=True)  # type: ignore[untyped-decorator]
def _refine_long(seg: Array, long: Array, short: Array, steps: int, stride: int, person: float) -> Array:
    """Equation 5. What follows itself is needed everywhere until its last step; the rest at person cells."""
    for step in range(steps):
        long = _followed(seg, long, long, stride, person if step == steps - 1 else -np.inf)
    for _ in range(steps):
        long = _followed(seg, long, short, stride, person)
    return long


@njit(cache=True)  # type: ignore[untyped-decorator]
def _followed(seg: Array, offsets: Array, field: Array, stride: int, least: float) -> Array:
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


@njit(cache=True)  # type: ignore[untyped-decorator]
def _embedding_distance(
    seg: Array, long: Array, keypoints: Array, weight: Array, stride: int, person: float
) -> Array:
    """Equation 6 at every cell for every person, N x H x W; `weight` is presence over its sum and lambda."""
    people, (height, width) = len(keypoints), seg.shape
    distance = np.full((people, height, width), np.inf, seg.dtype)
    for n in range(people):
        if weight[n].sum() == 0:
            continue  # nothing is there to belong to
        for row in range(height):
            for column in range(width):
                if seg[row, column] < person:
                    continue
                away = 0.0
                for k in range(K):
                    x = column * stride + long[k, 0, row, column] - keypoints[n, k, 0]
                    y = row * stride + long[k, 1, row, column] - keypoints[n, k, 1]
                    away += weight[n, k] * math.sqrt(x * x + y * y)
                distance[n, row, column] = away
    return distance


@njit(cache=True)  # type: ignore[untyped-decorator]
def _mask(
    seg: Array, away: Array, step: float, height: int, width: int, threshold: float, person: float
) -> npt.NDArray[np.bool_]:
    """One person's mask over the image. Where all four cells around a pixel agree, it is not interpolated."""
    rows, columns = seg.shape
    mask = np.zeros((height, width), np.bool_)
    near = away <= threshold  # only person cells are: others are infinitely far
    lefts = np.minimum((np.arange(width) * step).astype(np.int64), columns - 1)
    firsts = np.searchsorted(lefts, np.arange(columns + 1))  # the pixels between cells j and j + 1
    held_rows = np.array([near[row].any() for row in range(rows)])
    for y in range(height):
        v = min(y * step, rows - 1.0)
        top = int(v)
        bottom, below = min(top + 1, rows - 1), v - top
        if not (held_rows[top] or held_rows[bottom]):
            continue
        for left in range(columns):
            right = min(left + 1, columns - 1)
            count = near[top, left] + near[top, right] + near[bottom, left] + near[bottom, right]
            if count == 4:
                mask[y, firsts[left] : firsts[left + 1]] = True
            elif count > 0:
                here = _vertical(seg, away, top, bottom, below, left, threshold, person)
                there = _vertical(seg, away, top, bottom, below, right, threshold, person)
                for x in range(firsts[left], firsts[left + 1]):
                    beside = min(x * step, columns - 1.0) - left
                    p = (1 - beside) * here[0] + beside * there[0]
                    held = (1 - beside) * here[1] + beside * there[1]
                    reached = (1 - beside) * here[2] + beside * there[2]
                    mask[y, x] = held > 0 and p >= person and reached <= threshold * held
    return mask


@njit(cache=True)  # type: ignore[untyped-decorator]
def _vertical(
    seg: Array,
    away: Array,
    top: int,
    bottom: int,
    below: float,
    column: int,
    threshold: float,
    person: float,
) -> tuple[float, float, float]:
    """Between two cells of a column: p_S, the share that person cells have, and their distance by shares."""
    p = held = reached = 0.0
    for row, share in ((top, 1 - below), (bottom, below)):
        p += share * seg[row, column]
        if seg[row, column] >= person:
            held += share
            reached += share * min(away[row, column], 2 * threshold)
    return p, held, reached
