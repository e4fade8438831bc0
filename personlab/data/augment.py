"""Training examples: an image as training's random crops show it (paper, section 4.1)."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from personlab.data.example import Example, example
from personlab.data.transform import Transform
from personlab.params import Train

Box = tuple[float, float, float, float]  # x, y, width, height in image pixels

# Where crops are drawn around people, this share is drawn over the whole image all the same: a network that
# has only seen what is near people finds people everywhere else.
_ANYWHERE: Final = 0.1

# People are magnified no further than this to reach the size asked for.
_MAGNIFIED: Final = 2.0


def augmented(row: Mapping[str, Any], train: Train, *, epoch: int) -> Example:
    """A shard row seen through a random transform: the paper's, or around a person (`train.person_sizes`).

    The transform depends on the seed, the epoch and the image alone, so that it is the same whichever worker
    draws it and however often the run was interrupted.
    """
    rng = np.random.default_rng((train.seed, epoch, row["image_id"]))
    height, width = row["height"], row["width"]
    people: list[Box] = [tuple(person["box"]) for person in row["people"] if any(person["visibility"])]
    if train.person_sizes and people and rng.uniform() >= _ANYWHERE:
        box = people[rng.integers(len(people))]
        transform = person_transform(rng, box, width=width, crop=train.crop, sizes=train.person_sizes)
    else:
        scales = train.min_scale, train.max_scale
        transform = random_transform(rng, height=height, width=width, crop=train.crop, scales=scales)
    return example(row, transform, stride=train.stride)


def random_transform(
    rng: np.random.Generator, *, height: int, width: int, crop: int, scales: tuple[float, float]
) -> Transform:
    """A random square crop of a height x width image, resized to `crop` pixels, mirrored half of the time.

    The square that tightly contains the image is resized by a uniform factor between the two `scales` and
    shifted: a box smaller than the image stays inside it, a larger one keeps all of it.
    """
    side = max(height, width) * rng.uniform(*scales)
    return _square(rng, (0, 0, width, height), side=side, width=width, crop=crop)


def person_transform(
    rng: np.random.Generator, box: Box, *, width: int, crop: int, sizes: tuple[float, float]
) -> Transform:
    """A random square crop of an image, `width` pixels wide, around the person in `box`.

    The longer side of the box becomes a size between the two `sizes` (input pixels, every ratio alike). The
    crop shows all of the box somewhere, or, where the box is larger, nothing but the box.
    """
    size = np.exp(rng.uniform(*np.log(sizes)))
    scale = min(size / max(box[2], box[3]), _MAGNIFIED)
    return _square(rng, box, side=(crop - 1) / scale + 1, width=width, crop=crop)


def _square(rng: np.random.Generator, box: Box, *, side: float, width: int, crop: int) -> Transform:
    """A random square of `side` image pixels inside `box` or, where it is larger, around it."""
    scale = (crop - 1) / max(side - 1, 1)
    left, top = (
        start + rng.uniform(min(0, length - side), max(0, length - side))
        for start, length in ((box[0], box[2]), (box[1], box[3]))
    )
    mirrored = bool(rng.integers(2))
    if mirrored:
        left = width - left - side
    return Transform(
        scale=scale,
        shift=(-left * scale, -top * scale),
        height=crop,
        width=crop,
        mirror_width=width if mirrored else 0,
    )
