"""The canvas that scenes are drawn on: colours, and which person covers which pixel.

It has twice the resolution of the image: downscaling smooths the colours, and masks stay exact.
"""

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from personlab.people import FloatArray
from personlab.synthetic.raycast import Window

SUPERSAMPLING: Final = 2
BACKGROUND: Final = 0


class Canvas:
    """The canvas of an image of width x height pixels. Coordinates are canvas pixels (x, y).

    What is drawn later covers what was drawn earlier.
    """

    def __init__(self, width: int, height: int) -> None:
        self.size = h, w = SUPERSAMPLING * height, SUPERSAMPLING * width
        self.rgb = np.zeros((h, w, 3), np.uint8)
        self.instances = np.full((h, w), BACKGROUND, np.uint8)  # the covering person, from 1, or BACKGROUND
        self.depth = np.zeros((h, w), np.float32)  # statures: the covering person's surface

    def polygon(self, points: npt.ArrayLike, colour: FloatArray) -> None:
        """Fill a polygon of N x 2 points with background."""
        corners = np.asarray(points).round().astype(np.int32)
        cv2.fillPoly(self.rgb, [corners], to_bytes(colour))
        cv2.fillPoly(self.instances, [corners], BACKGROUND)

    def rectangle(self, x: float, y: float, width: float, height: float, colour: FloatArray) -> None:
        """Fill the rectangle whose upper left corner is (x, y) with background."""
        self.polygon([(x, y), (width + x, y), (width + x, height + y), (x, height + y)], colour)

    def ellipse(
        self, centre: tuple[float, float], radii: tuple[float, float], angle: float, colour: FloatArray
    ) -> None:
        """Fill an ellipse, turned by `angle` degrees, with background."""
        at = round(centre[0]), round(centre[1])
        axes = max(round(radii[0]), 1), max(round(radii[1]), 1)
        cv2.ellipse(self.rgb, at, axes, angle, 0, 360, to_bytes(colour), -1)
        cv2.ellipse(self.instances, at, axes, angle, 0, 360, BACKGROUND, -1)

    def paste(self, window: Window, colour: FloatArray, depth: FloatArray, instance: int) -> None:
        """Draw a person as `render` returns it."""
        drawn = np.isfinite(depth)
        self.rgb[window][drawn] = (colour[drawn].clip(0, 1) * 255).astype(np.uint8)
        self.instances[window][drawn] = instance
        self.depth[window][drawn] = depth[drawn]

    def shadow(self, centre: tuple[float, float], radii: tuple[float, float], strength: float) -> None:
        """Darken an ellipse, less towards its edge."""
        h, w = self.size
        left, right = np.clip((int(centre[0] - radii[0]), int(centre[0] + radii[0]) + 1), 0, w)
        top, bottom = np.clip((int(centre[1] - radii[1]), int(centre[1] + radii[1]) + 1), 0, h)
        x = (np.arange(left, right, dtype=np.float32) - centre[0]) / radii[0]
        y = (np.arange(top, bottom, dtype=np.float32) - centre[1]) / radii[1]
        brightness = 1 - strength * np.maximum(1 - x[None, :] ** 2 - y[:, None] ** 2, 0)
        part = self.rgb[top:bottom, left:right]
        part[:] = (part * brightness[..., None]).astype(np.uint8)


def to_bytes(colour: FloatArray) -> tuple[int, int, int]:
    """A colour in 0..1 as OpenCV takes it."""
    red, green, blue = (int(channel) for channel in np.clip(colour * 255, 0, 255))
    return red, green, blue
