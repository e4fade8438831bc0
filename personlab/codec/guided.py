"""Guided filter (He, Sun and Tang, ECCV 2010): the outlines of people follow the edges of the photo.

Around every place the filter fits p_S = a . colour + b to the photo by least squares, and each place takes
the mean of the fits around it. What has the same colour then has about the same p_S, and where colours change
p_S may change faster than from one output cell to the next.
"""

import math
from typing import Final

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
        guide = _guide(np.ascontiguousarray(image), 1 / (POINTS * step), (top, left, bottom, right))
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


@compiled
def _guide(image: ImageArray, spacing: float, box: Box) -> Array:
    """The mean colours, from 0 to 1, of the pixels around each point in the box: 3 x rows x columns.

    Points are `spacing` pixels apart. Those beyond the image have the colour of its border.
    """
    height, width, _ = image.shape
    top, left, bottom, right = box
    guide = np.zeros((3, bottom - top, right - left), np.float32)
    for row in range(bottom - top):
        first_y, last_y = _pixels((top + row) * spacing, spacing, height)
        for column in range(right - left):
            first_x, last_x = _pixels((left + column) * spacing, spacing, width)
            red = green = blue = 0
            for y in range(first_y, last_y):
                for x in range(first_x, last_x):
                    red += image[y, x, 0]
                    green += image[y, x, 1]
                    blue += image[y, x, 2]
            share = 1 / (255 * (last_y - first_y) * (last_x - first_x))
            guide[0, row, column], guide[1, row, column] = red * share, green * share
            guide[2, row, column] = blue * share
    return guide


@compiled
def _pixels(place: float, spacing: float, size: int) -> tuple[int, int]:
    """The pixels, first and one past the last, within half a spacing of a place; at least the nearest."""
    first = math.ceil(place - spacing / 2)
    last = math.floor(place + spacing / 2)
    if first > last:
        first = last = round(place)
    first = min(first, size - 1)
    return max(first, 0), max(min(last, size - 1), first, 0) + 1


@compiled
def guided_filter(guide: Array, p: Array, radius: int, epsilon: float) -> Array:
    """The filtered p (H x W), guided by colours from 0 to 1 (3 x H x W); boxes end at the border."""
    _, rows, columns = guide.shape
    products = np.empty((13, rows, columns), p.dtype)  # colours, p, colours times p, colours times colours
    products[:3], products[3] = guide, p
    for c in range(3):
        products[4 + c] = guide[c] * p
    products[7], products[8], products[9] = guide[0] * guide[0], guide[0] * guide[1], guide[0] * guide[2]
    products[10], products[11], products[12] = guide[1] * guide[1], guide[1] * guide[2], guide[2] * guide[2]
    means = _box_means(products, radius)
    fit = np.empty((4, rows, columns), p.dtype)  # a, b
    for row in range(rows):
        _fit(means[:, row], epsilon, fit[:, row])
    a = _box_means(fit, radius)
    filtered: Array = a[0] * guide[0] + a[1] * guide[1] + a[2] * guide[2] + a[3]
    return filtered


@compiled
def _fit(means: Array, epsilon: float, fit: Array) -> None:
    """a and b (4 x W) of the least squares fits, from the means of `guided_filter` (13 x W)."""
    for i in range(means.shape[1]):
        r, g, b, p = means[0, i], means[1, i], means[2, i], means[3, i]
        # covariances of the colours with p and with each other
        rp, gp, bp = means[4, i] - r * p, means[5, i] - g * p, means[6, i] - b * p
        rr, rg, rb = means[7, i] - r * r + epsilon, means[8, i] - r * g, means[9, i] - r * b
        gg, gb, bb = means[10, i] - g * g + epsilon, means[11, i] - g * b, means[12, i] - b * b + epsilon
        # the adjugate of the symmetric matrix, and its determinant
        i00, i01, i02 = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
        i11, i12, i22 = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
        scale = 1 / (rr * i00 + rg * i01 + rb * i02)
        fit[0, i] = (i00 * rp + i01 * gp + i02 * bp) * scale
        fit[1, i] = (i01 * rp + i11 * gp + i12 * bp) * scale
        fit[2, i] = (i02 * rp + i12 * gp + i22 * bp) * scale
        fit[3, i] = p - fit[0, i] * r - fit[1, i] * g - fit[2, i] * b


@compiled
def _box_means(values: Array, radius: int) -> Array:
    """The mean over the box of 2 radius + 1 points a side around every point, of the points that exist:
    C x H x W. By running sums along rows, then columns."""
    channels, rows, columns = values.shape
    means, across = np.empty_like(values), np.empty((rows, columns), values.dtype)
    in_row, in_column = _box_shares(columns, radius), _box_shares(rows, radius)
    for c in range(channels):
        for row in range(rows):
            line, total = values[c, row], 0.0
            for column in range(-radius, columns):
                if column + radius < columns:
                    total += line[column + radius]
                if column > radius:
                    total -= line[column - radius - 1]
                if column >= 0:
                    across[row, column] = total * in_row[column]
        down = np.zeros(columns)
        for row in range(-radius, rows):
            if row + radius < rows:
                down += across[row + radius]
            if row > radius:
                down -= across[row - radius - 1]
            if row >= 0:
                means[c, row] = down * in_column[row]
    return means


@compiled
def _box_shares(size: int, radius: int) -> Array:
    """1 over the number of points that exist within the radius of each point of a line."""
    at = np.arange(size)
    return 1 / (np.minimum(at + radius, size - 1) - np.maximum(at - radius, 0) + 1)
