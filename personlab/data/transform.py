"""How the network sees an image: a scale, a shift and perhaps a mirror, without half-pixel shifts.

A `Transform` maps image points to input points, p_input = scale * p_image + shift (x mirrored first if
asked). Pixel (0, 0) of an unshifted transform is pixel (0, 0) of the image at every scale, so that
annotations, output cells and pixels stay on one lattice.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from personlab.codec.fields import cells
from personlab.people import BoolArray, FloatArray

ImageArray = npt.NDArray[np.uint8]

# What the network sees outside the image: mid-grey, which input normalisation maps near zero.
PADDING = (124, 116, 104)

# The finest output stride, in input pixels: the cells that masks are decoded on.
_CELL = 8


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
        """Resample an RGB image (h x w x 3, uint8) to height x width x 3; outside the image is PADDING.

        When shrinking, the image is first smoothed by what the coarser pixels cannot hold, so that
        small people do not alias.
        """
        if self.scale < 1:
            sigma = 0.5 * np.sqrt(1 / self.scale**2 - 1)
            image = cv2.GaussianBlur(image, (0, 0), sigma)
        resampled: ImageArray = cv2.warpAffine(
            image, self.matrix(), (self.width, self.height), flags=cv2.INTER_LINEAR, borderValue=PADDING
        )
        return resampled

    def coverage(self, masks: BoolArray, stride: int) -> FloatArray:
        """How much of each output cell the masks cover: P x h x w image masks -> P x H x W in [0, 1].

        A cell stands for the stride x stride pixels around it, but for 8 x 8 at most: what a network learns
        on a coarse grid is then what it has to say on the fine one that it is decoded on. Shares of whole
        cells of 16 would teach it to blur borders and to leave out arms. The share counts the pixels that
        lie in the image, and is exact (differences of the summed mask). Outside the image it is 0. Sampling
        one pixel a cell instead would move mask borders by up to half a cell.
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
        """Image coordinates of both edges of every cell along one axis; they run backwards if mirrored."""
        reach = min(stride, _CELL) / 2
        points = np.zeros((2 * cells(side, stride), 2), np.float32)
        points[:, axis] = (np.arange(cells(side, stride))[:, None] * stride + [-reach, reach]).ravel()
        return self.inverse_points(points)[:, axis]


def _lerp(rows: npt.NDArray[Any], at: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Rows of a matrix at fractional indices."""
    below = np.minimum(at.astype(int), len(rows) - 2)
    share = (at - below)[:, None].astype(np.float64)
    lerped: npt.NDArray[np.float64] = rows[below] * (1 - share) + rows[below + 1] * share
    return lerped


def fit(height: int, width: int, side: int) -> tuple[float, int, int]:
    """Scale that makes the longest side of an image `side` pixels, and the scaled height and width."""
    scale = (side - 1) / (max(height, width) - 1) if max(height, width) > 1 else float(side)
    return scale, round((height - 1) * scale) + 1, round((width - 1) * scale) + 1
