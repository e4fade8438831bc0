"""Crops around single people, the input of the single-person estimator (G-RMI, Papandreou et al. 2017).

A crop shows a person's box with some context at a fixed size and aspect ratio. Training crops vary in scale
and position, are mirrored, and show some people at the resolution of small ones, whose keypoints are imputed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from personlab.data.images import pixels
from personlab.data.transform import ImageArray, Transform
from personlab.people import Annotation, BoolArray, Box, FloatArray

T = TypeVar("T")

# A crop shows the box enlarged by this factor, so that limbs at the box's border are not at the crop's.
CONTEXT: Final = 1.25

# Training crops: scaled by 1/1.2 to 1.2 and shifted by up to a tenth of the crop.
_SCALE_JITTER: Final = 1.2
_SHIFT_JITTER: Final = 0.1
# Training crops: this share of the people is shown at the resolution of people 12 to 64 pixels tall.
_COARSE_SHARE: Final = 0.5
_COARSE_HEIGHTS: Final = (12.0, 64.0)


@dataclass(frozen=True)
class Person:
    """A person with annotated keypoints, in image pixels."""

    id: int
    keypoints: FloatArray  # K x 2
    labelled: BoolArray  # K
    box: Box
    area: float

    @classmethod
    def of(cls, person: Annotation) -> Self:
        return cls(person.id, person.keypoints, person.visibility > 0, person.box, person.area)


def crop_transform(box: Box, *, height: int, width: int, context: float = CONTEXT) -> Transform:
    """The transform that fits the box, enlarged by `context`, into height x width pixels and centres it."""
    x, y, w, h = box
    scale = min((width - 1) / (context * w), (height - 1) / (context * h))
    shift = ((width - 1) / 2 - scale * (x + w / 2), (height - 1) / 2 - scale * (y + h / 2))
    return Transform(scale=scale, shift=shift, height=height, width=width)


def cut(image: ImageArray, transform: Transform, *, detail: float = 1.0) -> ImageArray:
    """`Transform.image` of an unmirrored transform, which reads only the part of the image that is shown.

    Args:
        detail: below 1, resample to a resolution lower by this factor and enlarge the result.
    """
    if detail < 1:
        coarse = Transform(
            scale=transform.scale * detail,
            shift=(transform.shift[0] * detail, transform.shift[1] * detail),
            height=math.ceil((transform.height - 1) * detail) + 2,
            width=math.ceil((transform.width - 1) * detail) + 2,
        )
        enlarge = Transform(1 / detail, (0.0, 0.0), transform.height, transform.width)
        return enlarge.image(cut(image, coarse))
    far = np.array([[0, 0], [transform.width - 1, transform.height - 1]], np.float32)
    corners = transform.inverse_points(far)
    margin = math.ceil(2 / transform.scale) + 2  # more than the reach of smoothing and interpolation
    height, width = image.shape[:2]
    left, top = (int(v) for v in np.clip(np.floor(corners[0]) - margin, 0, (width - 1, height - 1)))
    right, bottom = (int(v) for v in np.ceil(corners[1]) + margin)
    part = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    shift = (transform.shift[0] + transform.scale * left, transform.shift[1] + transform.scale * top)
    return replace(transform, shift=shift).image(part)


def _detail(transform: Transform, box: Box, person_height: float) -> float:
    """The `detail` of `cut` at which a box has the resolution of one at most `person_height` pixels tall."""
    return person_height / (transform.scale * box[3]) if person_height < box[3] else 1.0


def person_crop(
    image: ImageArray, box: Box, *, height: int, width: int, person_height: float = math.inf
) -> tuple[ImageArray, Transform]:
    """The crop around a box and its transform.

    Args:
        person_height: show the box at the resolution of one at most this many pixels tall.
    """
    transform = crop_transform(box, height=height, width=width)
    return cut(image, transform, detail=_detail(transform, box, person_height)), transform


def training_crop(
    image: ImageArray,
    person: Person,
    random: np.random.Generator,
    flip: Sequence[int] | None,
    *,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A random crop of a person: jittered, coarsened and, if `flip` (`Skeleton.flip`) is known, mirrored.

    Returns the crop (3 x height x width uint8), the keypoints (K x 2 float32, crop pixels) and which of them
    are labelled (K bool).
    """
    transform, detail = _jitter(person, random, height=height, width=width)
    crop = cut(image, transform, detail=detail)
    keypoints, labelled = transform.points(person.keypoints), person.labelled
    if random.random() < 0.5 and flip is not None:
        crop, keypoints, labelled = mirrored(crop, keypoints, labelled, flip)
    tensor = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)
    return tensor, torch.from_numpy(keypoints), torch.from_numpy(labelled)


def _jitter(
    person: Person, random: np.random.Generator, *, height: int, width: int
) -> tuple[Transform, float]:
    """A random transform around a person, and the `detail` of `cut`."""
    context = CONTEXT * _SCALE_JITTER ** random.uniform(-1, 1)
    transform = crop_transform(person.box, height=height, width=width, context=context)
    dx, dy = random.uniform(-_SHIFT_JITTER, _SHIFT_JITTER, 2) * (width, height)
    transform = replace(transform, shift=(transform.shift[0] + dx, transform.shift[1] + dy))
    if random.random() >= _COARSE_SHARE:
        return transform, 1.0
    person_height = math.exp(random.uniform(*np.log(_COARSE_HEIGHTS)))
    return transform, _detail(transform, person.box, person_height)


def mirrored(
    image: ImageArray, keypoints: FloatArray, labelled: BoolArray, flip: Sequence[int]
) -> tuple[ImageArray, FloatArray, BoolArray]:
    """The crop mirrored: columns reversed, left and right keypoints swapped."""
    swapped = keypoints[list(flip)]
    swapped[:, 0] = image.shape[1] - 1 - swapped[:, 0]
    return image[:, ::-1], swapped, labelled[list(flip)]


def with_images(
    rows: Sequence[Mapping[str, Any]], people: Mapping[int, Sequence[T]]
) -> Iterator[tuple[T, ImageArray]]:
    """Each person with its image. Images without people are not decoded.

    Args:
        rows: of tables.IMAGES.
        people: by image id.
    """
    for row in rows:
        if shown := people.get(row["image_id"]):
            image = pixels(row)
            yield from ((person, image) for person in shown)
