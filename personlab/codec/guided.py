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
        for column in range(columns):
            r, g, b, q, rq, gq, bq, rr, rg, rb, gg, gb, bb = means[:, row, column]
            fit[:, row, column] = _fit(
                (r, g, b, q),
                (rq - r * q, gq - g * q, bq - b * q),
                (rr - r * r + epsilon, rg - r * g, rb - r * b),
                (gg - g * g + epsilon, gb - g * b, bb - b * b + epsilon),
            )
    a = _box_means(fit, radius)
    filtered: Array = a[0] * guide[0] + a[1] * guide[1] + a[2] * guide[2] + a[3]
    return filtered


@compiled
def _fit(
    mean: tuple[float, float, float, float],
    covariance: tuple[float, float, float],
    first: tuple[float, float, float],
    second: tuple[float, float, float],
) -> tuple[float, float, float, float]:
    """a and b of the least squares fit, from the means of the colours and p, the covariances of the colours
    with p, and those of the colours with each other: (rr, rg, rb) and (gg, gb, bb)."""
    rr, rg, rb = first
    gg, gb, bb = second
    # the adjugate of the symmetric matrix, and its determinant
    i00, i01, i02 = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
    i11, i12, i22 = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    determinant = rr * i00 + rg * i01 + rb * i02
    r, g, b = covariance
    a = (
        (i00 * r + i01 * g + i02 * b) / determinant,
        (i01 * r + i11 * g + i12 * b) / determinant,
        (i02 * r + i12 * g + i22 * b) / determinant,
    )
    return a[0], a[1], a[2], mean[3] - a[0] * mean[0] - a[1] * mean[1] - a[2] * mean[2]


@compiled
def _box_means(values: Array, radius: int) -> Array:
    """The mean over the box of 2 radius + 1 points a side around every point, of the points that exist:
    C x H x W. Along rows and then columns, by running sums."""
    channels, rows, columns = values.shape
    means = np.empty_like(values)
    across = np.empty((rows, columns), values.dtype)
    for c in range(channels):
        for row in range(rows):
            total = 0.0
            for column in range(-radius, columns):
                if column + radius < columns:
                    total += values[c, row, column + radius]
                if column - radius - 1 >= 0:
                    total -= values[c, row, column - radius - 1]
                if column >= 0:
                    across[row, column] = total / (
                        min(column + radius, columns - 1) - max(column - radius, 0) + 1
                    )
        down = np.zeros(columns, np.float64)
        for row in range(-radius, rows):
            if row + radius < rows:
                down += across[row + radius]
            if row - radius - 1 >= 0:
                down -= across[row - radius - 1]
            if row >= 0:
                means[c, row] = down / (min(row + radius, rows - 1) - max(row - radius, 0) + 1)
    return means
