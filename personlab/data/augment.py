"""Random crops of training images (paper, section 4.1)."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from personlab.data.example import Example, example
from personlab.data.transform import Transform
from personlab.params import Train
from personlab.people import Box
from personlab.skeleton import Skeleton

# With `train.person_sizes`, the share of crops that are drawn from the whole image nevertheless: a network
# trained only near people detects people in the background.
_WHOLE_IMAGE_SHARE: Final = 0.1

# Largest magnification of a person to reach a size of `train.person_sizes`.
_MAX_MAGNIFICATION: Final = 2.0


def augmented(row: Mapping[str, Any], train: Train, *, epoch: int, skeleton: Skeleton) -> Example:
    """A random crop of a row of tables.IMAGES with its `people`: the paper's, or around a person
    (`train.person_sizes`).

    The crop depends on the seed, the epoch and the image only, not on the worker or on interruptions. It is
    mirrored with p = 0.5 if the skeleton knows left and right.
    """
    rng = np.random.default_rng((train.seed, epoch, row["image_id"]))
    height, width = row["height"], row["width"]
    mirror = skeleton.flip is not None
    people: list[Box] = [tuple(person["box"]) for person in row["people"] if any(person["visibility"])]
    if train.person_sizes and people and rng.uniform() >= _WHOLE_IMAGE_SHARE:
        box = people[rng.integers(len(people))]
        sizes = train.person_sizes
        transform = person_transform(rng, box, width=width, crop=train.crop, sizes=sizes, mirror=mirror)
    else:
        scales = train.min_scale, train.max_scale
        transform = random_transform(
            rng, height=height, width=width, crop=train.crop, scales=scales, mirror=mirror
        )
    return example(row, transform, stride=train.stride, skeleton=skeleton)


def random_transform(
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    crop: int,
    scales: tuple[float, float],
    mirror: bool = True,
) -> Transform:
    """A random square crop of a height x width image, resized to `crop` pixels; `mirror`: mirrored with
    p = 0.5.

    The smallest square around the image is scaled by a uniform factor between the two `scales` and shifted at
    random. Along each axis it lies inside the image if it is shorter, and contains the image if it is longer.
    """
    side = max(height, width) * rng.uniform(*scales)
    return _square(rng, (0, 0, width, height), side=side, width=width, crop=crop, mirror=mirror)


def person_transform(
    rng: np.random.Generator,
    box: Box,
    *,
    width: int,
    crop: int,
    sizes: tuple[float, float],
    mirror: bool = True,
) -> Transform:
    """A random square crop of an image, `width` pixels wide, around the person in `box`.

    The longer side of the box is resized to a log-uniform size between the two `sizes` (input pixels). The
    crop contains the box at a random place, or lies within it where the box is larger.
    """
    size = np.exp(rng.uniform(*np.log(sizes)))
    scale = min(size / max(box[2], box[3]), _MAX_MAGNIFICATION)
    return _square(rng, box, side=(crop - 1) / scale + 1, width=width, crop=crop, mirror=mirror)


def _square(
    rng: np.random.Generator, box: Box, *, side: float, width: int, crop: int, mirror: bool
) -> Transform:
    """A random square of `side` image pixels within `box`, or around it where the box is smaller."""
    scale = (crop - 1) / max(side - 1, 1)
    left, top = (
        start + rng.uniform(min(0, length - side), max(0, length - side))
        for start, length in ((box[0], box[2]), (box[1], box[3]))
    )
    mirrored = bool(rng.integers(2)) and mirror
    if mirrored:
        left = width - left - side
    return Transform(
        scale=scale,
        shift=(-left * scale, -top * scale),
        height=crop,
        width=crop,
        mirror_width=width if mirrored else 0,
    )
