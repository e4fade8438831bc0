"""Guided filter (He, Sun and Tang, ECCV 2010): the outlines of people follow the edges of the photo.

Around every place the filter fits p_S = a . colour + b to the photo by least squares, and each place takes
the mean of the fits around it. What has the same colour then has about the same p_S, and where colours change
p_S may change faster than from one output cell to the next.
"""

import math
from functools import partial
from typing import Final

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from personlab.codec.loops import Array, array, compiled
from personlab.data.transform import ImageArray

# The filter works on so many points a cell and axis.
POINTS: Final = 2

# Half the side of the boxes in which p_S is fitted, points: one cell.
RADIUS: Final = POINTS

# Weight of the squares of `a`, which keeps the fit from following noise; colours are from 0 to 1.
EPSILON: Final = 1e-3

Box = tuple[int, int, int, int]  # first row and column, and one past the last


def guided_seg(seg: Tensor, image: ImageArray, cells: Tensor, *, step: float) -> Tensor:
    """p_S on a grid of `POINTS` points a cell, filtered near some cells and interpolated elsewhere.

    Args:
        seg: H x W, on the output cells.
        image: height x width x 3, RGB.
        cells: H x W bool, near which p_S is filtered.
        step: cells per image pixel.

    Returns:
        POINTS (H - 1) + 1 x POINTS (W - 1) + 1; image pixel (x, y) is point (POINTS step x, POINTS step y).
    """
    rows, columns = (POINTS * (n - 1) + 1 for n in seg.shape)
    points = interpolate(seg[None, None], size=(rows, columns), mode="bilinear", align_corners=True)[0, 0]
    if cells.any():
        top, left, bottom, right = _around(cells, rows, columns)
        guide = _guide(image, 1 / (POINTS * step), (top, left, bottom, right))
        filtered = guided_filter(guide, array(points[top:bottom, left:right]), RADIUS, EPSILON)
        points[top:bottom, left:right] = torch.from_numpy(filtered)
    return points


def _around(cells: Tensor, rows: int, columns: int) -> Box:
    """The points that have a say in those of the cells and their neighbours."""
    reach = 2 * RADIUS + POINTS
    (first_row, last_row), (first_column, last_column) = (
        (int(index[0]) * POINTS, int(index[-1]) * POINTS)
        for index in (cells.any(1).nonzero(), cells.any(0).nonzero())
    )
    return (
        max(first_row - reach, 0),
        max(first_column - reach, 0),
        min(last_row + reach + 1, rows),
        min(last_column + reach + 1, columns),
    )


def _guide(image: ImageArray, spacing: float, box: Box) -> Array:
    """The mean colours, from 0 to 1, of the pixels around each point in the box: rows x columns x 3.

    Points are `spacing` pixels apart. Those beyond the image have the colour of its border.
    """
    top, left, bottom, right = box
    reach = int(spacing / 2)
    first_row, last_row = _pixels(top * spacing, (bottom - 1) * spacing, reach, image.shape[0])
    first_column, last_column = _pixels(left * spacing, (right - 1) * spacing, reach, image.shape[1])
    part = np.ascontiguousarray(image[first_row:last_row, first_column:last_column])
    side = 2 * reach + 1
    part = cv2.blur(part, (side, side), borderType=cv2.BORDER_REPLICATE)
    to_part = np.array([[spacing, 0, left * spacing - first_column], [0, spacing, top * spacing - first_row]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (right - left, bottom - top)
    colours: Array = cv2.warpAffine(part, to_part, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return colours.astype(np.float32) / 255


def _pixels(low: float, high: float, reach: int, size: int) -> tuple[int, int]:
    """The pixels, first and one past the last, that places from `low` to `high` read; at least one."""
    first = min(max(math.floor(low) - reach, 0), size - 1)
    return first, max(min(math.ceil(high) + reach + 1, size), first + 1)


def guided_filter(guide: Array, p: Array, radius: int, epsilon: float) -> Array:
    """The filtered p (H x W), guided by colours from 0 to 1 (H x W x 3); boxes end at the border."""
    box = partial(
        cv2.boxFilter, ddepth=-1, ksize=(2 * radius + 1,) * 2, normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    count = box(np.ones_like(p))  # points of each box
    fits = box(_fits(box(_products(guide, p)), count, epsilon))
    filtered: Array = _filtered(fits, count, guide)
    return filtered


@compiled
def _products(guide: Array, p: Array) -> Array:
    """Colours, p, colours times p, colours times colours: H x W x 13."""
    rows, columns = p.shape
    products = np.empty((rows, columns, 13), p.dtype)
    for row in range(rows):
        for column in range(columns):
            r, g, b = guide[row, column]
            at, here = products[row, column], p[row, column]
            at[0], at[1], at[2], at[3] = r, g, b, here
            at[4], at[5], at[6] = r * here, g * here, b * here
            at[7], at[8], at[9], at[10], at[11], at[12] = r * r, r * g, r * b, g * g, g * b, b * b
    return products


@compiled
def _fits(sums: Array, count: Array, epsilon: float) -> Array:
    """a and b (H x W x 4) of the least squares fits, from the sums of `_products` (H x W x 13) in the boxes
    and the number of their points (H x W)."""
    rows, columns, _ = sums.shape
    fits = np.empty((rows, columns, 4), sums.dtype)
    for row in range(rows):
        for column in range(columns):
            at, share = sums[row, column], 1 / count[row, column]
            r, g, b, p = at[0] * share, at[1] * share, at[2] * share, at[3] * share
            # covariances of the colours with p and with each other
            rp, gp, bp = at[4] * share - r * p, at[5] * share - g * p, at[6] * share - b * p
            rr, rg, rb = at[7] * share - r * r + epsilon, at[8] * share - r * g, at[9] * share - r * b
            gg, gb = at[10] * share - g * g + epsilon, at[11] * share - g * b
            bb = at[12] * share - b * b + epsilon
            # the adjugate of the symmetric matrix, and its determinant
            i00, i01, i02 = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
            i11, i12, i22 = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
            scale = 1 / (rr * i00 + rg * i01 + rb * i02)
            fit = fits[row, column]
            fit[0] = (i00 * rp + i01 * gp + i02 * bp) * scale
            fit[1] = (i01 * rp + i11 * gp + i12 * bp) * scale
            fit[2] = (i02 * rp + i12 * gp + i22 * bp) * scale
            fit[3] = p - fit[0] * r - fit[1] * g - fit[2] * b
    return fits


@compiled
def _filtered(fits: Array, count: Array, guide: Array) -> Array:
    """a . colour + b (H x W), with the means of a and b from their sums in the boxes (H x W x 4)."""
    rows, columns = count.shape
    filtered = np.empty_like(count)
    for row in range(rows):
        for column in range(columns):
            total = fits[row, column, 3]
            for c in range(3):
                total += fits[row, column, c] * guide[row, column, c]
            filtered[row, column] = total / count[row, column]
    return filtered
