"""Training examples: an image as training's random crops show it (paper, section 4.1)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from personlab.data.example import Example, example
from personlab.data.view import View
from personlab.params import Train


def augmented(row: Mapping[str, Any], train: Train, *, epoch: int) -> Example:
    """A shard row seen through a random view.

    The view depends on the seed, the epoch and the image alone, so that it is the same whichever worker
    draws it and however often the run was interrupted.
    """
    rng = np.random.default_rng((train.seed, epoch, row["image_id"]))
    view = random_view(
        rng,
        height=row["height"],
        width=row["width"],
        crop=train.crop,
        min_scale=train.min_scale,
        max_scale=train.max_scale,
    )
    return example(row, view, stride=train.stride)


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
