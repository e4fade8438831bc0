"""Similarity transforms from an image to the network's input: scale, shift and mirroring.

A `Transform` maps image points to input points: p_input = scale * p_image + shift, after mirroring x.
There are no half-pixel shifts: without a shift, pixel (0, 0) of the input is pixel (0, 0) of the image at
every scale, so that annotations, output cells and pixels share one lattice.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from personlab.people import BoolArray, FloatArray

ImageArray = npt.NDArray[np.uint8]

# RGB of the input outside the image: mid-grey, close to zero after normalisation.
PADDING = (124, 116, 104)

# The finest output stride, input pixels.
_FINEST_STRIDE = 8


@dataclass(frozen=True)
class Transform:
    """A similarity from image pixels to input pixels.

    height, width: the input's size. mirror_width: the image's width if the image is mirrored first, else 0.
    """

    scale: float
    shift: tuple[float, float]  # x, y in input pixels
    height: int
    width: int
    mirror_width: int = 0

    def matrix(self) -> npt.NDArray[np.float64]:
        """2 x 3 affine matrix, image (x, y, 1) -> input (x, y)."""
        sign, start = (-1.0, self.mirror_width - 1.0) if self.mirror_width else (1.0, 0.0)
        dx, dy = self.shift
        return np.array(
            [[sign * self.scale, 0.0, self.scale * start + dx], [0.0, self.scale, dy]], dtype=np.float64
        )

    def points(self, xy: FloatArray) -> FloatArray:
        """Image points (... x 2) -> input points."""
        matrix = self.matrix()
        return (xy @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)

    def inverse_points(self, xy: FloatArray) -> FloatArray:
        """Input points (... x 2) -> image points."""
        matrix = self.matrix()
        return ((xy - matrix[:, 2]) / np.diagonal(matrix[:, :2])).astype(np.float32)

    def image(self, image: ImageArray) -> ImageArray:
        """Resample an RGB image (h x w x 3, uint8) to height x width x 3, with PADDING outside the image.

        An image that shrinks is low-pass filtered first, to prevent aliasing.
        """
        if self.scale < 1:
            sigma = 0.5 * np.sqrt(1 / self.scale**2 - 1)
            image = cv2.GaussianBlur(image, (0, 0), sigma)
        resampled: ImageArray = cv2.warpAffine(
            image, self.matrix(), (self.width, self.height), flags=cv2.INTER_LINEAR, borderValue=PADDING
        )
        return resampled

    def coverage(self, masks: BoolArray, stride: int) -> FloatArray:
        """The share of each output cell that masks cover: P x h x w image masks -> P x H x W in [0, 1].

        A cell is the stride x stride input pixels around its position, but at most 8 x 8: a network trained
        at stride 16 is decoded at stride 8, and shares of cells of 16 would train it to blur borders and to
        miss arms. The shares are exact (differences of an integral image), refer to the part of a cell that
        is in the image, and are 0 outside the image. Sampling one pixel per cell instead would move mask
        borders by up to half a cell.
        """
        h, w = masks.shape[1:]
        x = self._cell_edges(self.width, stride, axis=0).clip(-0.5, w - 0.5) + 0.5
        y = self._cell_edges(self.height, stride, axis=1).clip(-0.5, h - 0.5) + 0.5
        area = np.abs(np.diff(y)[::2, None] * np.diff(x)[::2])
        shares = np.zeros((len(masks), *area.shape), np.float32)
        for share, mask in zip(shares, masks, strict=True):
            summed = cv2.integral(mask.view(np.uint8))
            corners = _lerp(_lerp(summed, y).T, x).T
            covered = np.abs(np.diff(np.diff(corners, axis=0)[::2], axis=1)[:, ::2])
            np.divide(covered, area, out=share, where=area > 1e-3)
        return shares.clip(0, 1)

    def _cell_edges(self, side: int, stride: int, axis: int) -> FloatArray:
        """Image coordinates of both edges of every cell along one axis; descending if mirrored."""
        reach = min(stride, _FINEST_STRIDE) / 2
        positions = np.arange(0, side, stride)
        points = np.zeros((2 * len(positions), 2), np.float32)
        points[:, axis] = (positions[:, None] + [-reach, reach]).ravel()
        return self.inverse_points(points)[:, axis]


def _lerp(rows: npt.NDArray[Any], at: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Rows of a matrix at fractional indices, interpolated linearly."""
    below = np.minimum(at.astype(int), len(rows) - 2)
    share = (at - below)[:, None].astype(np.float64)
    lerped: npt.NDArray[np.float64] = rows[below] * (1 - share) + rows[below + 1] * share
    return lerped


def fit(height: int, width: int, side: int) -> tuple[float, int, int]:
    """The scale at which the longest side of an image has `side` pixels, and the scaled height and width."""
    scale = (side - 1) / (max(height, width) - 1) if max(height, width) > 1 else float(side)
    return scale, round((height - 1) * scale) + 1, round((width - 1) * scale) + 1
