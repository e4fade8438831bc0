"""What training does to an image before the network sees it (paper, section 4.1)."""

import numpy as np

from personlab.data.view import View


def random_view(
    rng: np.random.Generator, *, height: int, width: int, crop: int, min_scale: float, max_scale: float
) -> View:
    """A random square crop of a height x width image, resized to `crop` pixels, mirrored half of the time.

    The square that tightly contains the image is resized by a uniform factor between `min_scale` and
    `max_scale` and shifted: a box smaller than the image stays inside it, a larger one keeps all of it.
    """
    side = max(height, width) * rng.uniform(min_scale, max_scale)
    scale = (crop - 1) / max(side - 1, 1)
    left, top = (rng.uniform(min(0, free), max(0, free)) for free in (width - side, height - side))
    mirrored = bool(rng.integers(2))
    return View(
        scale=scale,
        shift=(-left * scale, -top * scale),
        height=crop,
        width=crop,
        mirror_width=width if mirrored else 0,
    )
