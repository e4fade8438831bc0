"""How the network sees an image: a scale, a shift and perhaps a mirror, without half-pixel shifts.

A `View` maps image points to input points, p_input = scale * p_image + shift (x mirrored first if asked).
Pixel (0, 0) of an unshifted view is pixel (0, 0) of the image at every scale, so that annotations, output
cells and pixels stay on one lattice.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from personlab.people import BoolArray, FloatArray

ImageArray = npt.NDArray[np.uint8]

# What the network sees outside the image: mid-grey, which input normalisation maps near zero.
PADDING = (124, 116, 104)


@dataclass(frozen=True)
class View:
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

    def mask_at_cells(self, mask: BoolArray, stride: int) -> BoolArray:
        """Sample full-size image masks (... x h x w) at the output cells; nearest pixel, False outside."""
        h, w = mask.shape[-2:]
        cells_y = np.arange(0, self.height, stride, dtype=np.float32)
        cells_x = np.arange(0, self.width, stride, dtype=np.float32)
        x = np.rint(self.inverse_points(np.stack([cells_x, np.zeros_like(cells_x)], -1))[:, 0]).astype(int)
        y = np.rint(self.inverse_points(np.stack([np.zeros_like(cells_y), cells_y], -1))[:, 1]).astype(int)
        inside = ((y >= 0) & (y < h))[:, None] & ((x >= 0) & (x < w))[None, :]
        sampled: BoolArray = mask[..., y.clip(0, h - 1)[:, None], x.clip(0, w - 1)[None, :]]
        sampled &= inside
        return sampled


def fit(height: int, width: int, side: int) -> tuple[float, int, int]:
    """Scale that makes the longest side of an image `side` pixels, and the scaled height and width."""
    scale = (side - 1) / (max(height, width) - 1) if max(height, width) > 1 else float(side)
    return scale, round((height - 1) * scale) + 1, round((width - 1) * scale) + 1
