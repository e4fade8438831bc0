"""Crops around single people, the input of the single-person estimator (G-RMI, Papandreou et al. 2017).

A crop shows a person's box with some context at a fixed size and aspect ratio. Training varies its scale,
position and side, and shows some people with the detail of people a few pixels tall, since those are the ones
whose keypoints are imputed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from personlab.data.example import pixels
from personlab.data.transform import ImageArray, Transform
from personlab.people import Annotation, BoolArray, FloatArray
from personlab.skeleton import FLIP

Box = tuple[float, float, float, float]  # x, y, width, height in image pixels
T = TypeVar("T")

# The crop holds the box enlarged by this much, so that limbs the box cuts off are not at its border.
CONTEXT: Final = 1.25

# Training: the crop's scale times 1/1.2 to 1.2, and its centre anywhere within a tenth of the crop.
_SCALE_JITTER: Final = 1.2
_SHIFT_JITTER: Final = 0.1
# Training: this share of the people is shown with no more detail than if they were 12 to 64 pixels tall.
_COARSE_SHARE: Final = 0.5
_COARSE_HEIGHTS: Final = (12.0, 64.0)


@dataclass(frozen=True)
class Person:
    """A person with annotated keypoints, in pixels of the image."""

    id: int
    keypoints: FloatArray  # K x 2
    labelled: BoolArray  # K
    box: Box
    area: float

    @classmethod
    def of(cls, person: Annotation) -> Self:
        return cls(person.id, person.keypoints, person.visibility > 0, person.box, person.area)


def crop_transform(box: Box, *, height: int, width: int, context: float = CONTEXT) -> Transform:
    """The transform to height x width pixels that hold the box enlarged by `context`, centred and maximal."""
    x, y, w, h = box
    scale = min((width - 1) / (context * w), (height - 1) / (context * h))
    shift = ((width - 1) / 2 - scale * (x + w / 2), (height - 1) / 2 - scale * (y + h / 2))
    return Transform(scale=scale, shift=shift, height=height, width=width)


def cut(image: ImageArray, transform: Transform, *, detail: float = 1.0) -> ImageArray:
    """Resample an RGB image by an unmirrored transform, reading only the pixels that it needs.

    detail: less than 1 samples the image that much more coarsely and enlarges the result.
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
    margin = math.ceil(2 / transform.scale) + 2  # more than smoothing and interpolation reach
    height, width = image.shape[:2]
    left, top = (int(v) for v in np.clip(np.floor(corners[0]) - margin, 0, (width - 1, height - 1)))
    right, bottom = (int(v) for v in np.ceil(corners[1]) + margin)
    part = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    shift = (transform.shift[0] + transform.scale * left, transform.shift[1] + transform.scale * top)
    return replace(transform, shift=shift).image(part)


def _detail(transform: Transform, box: Box, person_height: float) -> float:
    """The `detail` of `cut` that shows a box like one of at most `person_height` pixels."""
    return person_height / (transform.scale * box[3]) if person_height < box[3] else 1.0


def person_crop(
    image: ImageArray, box: Box, *, height: int, width: int, person_height: float = math.inf
) -> tuple[ImageArray, Transform]:
    """The crop around a box, in the detail of a person at most `person_height` pixels tall; its transform."""
    transform = crop_transform(box, height=height, width=width)
    return cut(image, transform, detail=_detail(transform, box, person_height)), transform


def training_crop(
    image: ImageArray, person: Person, random: np.random.Generator, *, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A randomly jittered, coarsened and mirrored crop of a person.

    Returns the crop (3 x height x width uint8), keypoints (K x 2 float32, crop pixels) and which of them are
    labelled (K bool).
    """
    transform, detail = _jitter(person, random, height=height, width=width)
    crop = cut(image, transform, detail=detail)
    keypoints, labelled = transform.points(person.keypoints), person.labelled
    if random.random() < 0.5:
        crop, keypoints, labelled = mirrored(crop, keypoints, labelled)
    tensor = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)
    return tensor, torch.from_numpy(keypoints), torch.from_numpy(labelled)


def _jitter(
    person: Person, random: np.random.Generator, *, height: int, width: int
) -> tuple[Transform, float]:
    """A random transform around a person, and the detail to show."""
    context = CONTEXT * _SCALE_JITTER ** random.uniform(-1, 1)
    transform = crop_transform(person.box, height=height, width=width, context=context)
    dx, dy = random.uniform(-_SHIFT_JITTER, _SHIFT_JITTER, 2) * (width, height)
    transform = replace(transform, shift=(transform.shift[0] + dx, transform.shift[1] + dy))
    if random.random() >= _COARSE_SHARE:
        return transform, 1.0
    person_height = math.exp(random.uniform(*np.log(_COARSE_HEIGHTS)))
    return transform, _detail(transform, person.box, person_height)


def mirrored(
    image: ImageArray, keypoints: FloatArray, labelled: BoolArray
) -> tuple[ImageArray, FloatArray, BoolArray]:
    """The left-right mirrored crop: columns reversed, left and right keypoints swapped."""
    swapped = keypoints[list(FLIP)]
    swapped[:, 0] = image.shape[1] - 1 - swapped[:, 0]
    return image[:, ::-1], swapped, labelled[list(FLIP)]


def with_images(
    rows: Sequence[Mapping[str, Any]], people: Mapping[int, Sequence[T]]
) -> Iterator[tuple[T, ImageArray]]:
    """The people of some images, by image id, each with its image; images without people are not decoded.

    rows: of tables.IMAGES.
    """
    for row in rows:
        if mine := people.get(row["image_id"]):
            image = pixels(row)
            yield from ((person, image) for person in mine)
