"""Crops around single people, as the single-person estimator sees them (G-RMI, Papandreou et al. 2017).

A crop shows a person's box with some context, at a fixed size and aspect ratio. Training varies its scale,
position and side, and shows some people as if they were only a few pixels tall: imputation is for those.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from personlab.data.example import decode_jpeg
from personlab.data.transform import ImageArray, Transform
from personlab.errors import UserError
from personlab.people import BoolArray, FloatArray
from personlab.skeleton import FLIP

Box = tuple[float, float, float, float]  # x, y, width, height in image pixels

# The crop holds the box enlarged by this much, so that limbs the box cuts off are not at its border.
CONTEXT: Final = 1.25

# Training: the crop's scale times 1/1.2 to 1.2, and its centre anywhere within a tenth of the crop.
_SCALE_JITTER: Final = 1.2
_SHIFT_JITTER: Final = 0.1
# Training: this share of the people is shown with no more detail than if they were 12 to 64 pixels tall.
_COARSE_SHARE: Final = 0.5
_COARSE_HEIGHTS: Final = (12.0, 64.0)


def crop_transform(box: Box, *, height: int, width: int, context: float = CONTEXT) -> Transform:
    """The transform whose height x width pixels hold the box enlarged by `context`, centred, as large as fits."""
    x, y, w, h = box
    scale = min((width - 1) / (context * w), (height - 1) / (context * h))
    shift = ((width - 1) / 2 - scale * (x + w / 2), (height - 1) / 2 - scale * (y + h / 2))
    return Transform(scale=scale, shift=shift, height=height, width=width)


def cut(image: ImageArray, transform: Transform, *, detail: float = 1.0) -> ImageArray:
    """What the (unmirrored) transform shows of an RGB image, reading only the pixels that it needs.

    detail: less than 1 shows it as if sampled that much more coarsely and enlarged again.
    """
    if detail < 1:
        coarse = Transform(
            scale=transform.scale * detail,
            shift=(transform.shift[0] * detail, transform.shift[1] * detail),
            height=math.ceil((transform.height - 1) * detail) + 2,
            width=math.ceil((transform.width - 1) * detail) + 2,
        )
        return Transform(1 / detail, (0.0, 0.0), transform.height, transform.width).image(cut(image, coarse))
    corners = transform.inverse_points(
        np.array([[0, 0], [transform.width - 1, transform.height - 1]], np.float32)
    )
    margin = math.ceil(2 / transform.scale) + 2  # more than smoothing and interpolation reach
    height, width = image.shape[:2]
    left, top = (int(v) for v in np.clip(np.floor(corners[0]) - margin, 0, (width - 1, height - 1)))
    right, bottom = (int(v) for v in np.ceil(corners[1]) + margin)
    part = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    shift = (transform.shift[0] + transform.scale * left, transform.shift[1] + transform.scale * top)
    return replace(transform, shift=shift).image(part)


def _detail(transform: Transform, box: Box, person_height: float) -> float:
    """What `cut` must be told to show a box with the detail of one at most `person_height` pixels tall."""
    return person_height / (transform.scale * box[3]) if person_height < box[3] else 1.0


def read_image(path: Path) -> ImageArray:
    """Decode an image file to RGB.

    Raises:
        UserError: the file cannot be read or does not decode.
    """
    try:
        return decode_jpeg(path.read_bytes(), name=str(path))
    except (OSError, UserError):
        raise UserError(
            f"{path}: cannot be read, though ingest has read it; put it back, or run dvc repro --force ingest"
        ) from None


@dataclass(frozen=True)
class Person:
    """A person to learn from, in pixels of the image at `path`."""

    path: Path
    keypoints: FloatArray  # K x 2
    labelled: BoolArray  # K
    box: Box
    area: float


def person_crop(
    image: ImageArray, box: Box, *, height: int, width: int, person_height: float = math.inf
) -> tuple[ImageArray, Transform]:
    """The crop around a box and its transform, with the detail of a person at most `person_height` pixels tall."""
    transform = crop_transform(box, height=height, width=width)
    return cut(image, transform, detail=_detail(transform, box, person_height)), transform


@dataclass(frozen=True)
class TrainingCrops:
    """Random crops of people, without end. Crop n is the same however often and by whomever it is asked for.

    An item is the crop (3 x height x width uint8), keypoints (K x 2 float32 crop pixels) and which of them
    are labelled (K bool).
    """

    people: Sequence[Person]
    height: int
    width: int
    seed: int

    def person(self, n: int) -> Person:
        """Whom crop n shows."""
        return self._draw(n)[1]

    def _draw(self, n: int) -> tuple[np.random.Generator, Person]:
        random = np.random.default_rng((self.seed, n))
        return random, self.people[int(random.integers(len(self.people)))]

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        random, person = self._draw(n)
        transform, detail = self._look(random, person)
        image = cut(read_image(person.path), transform, detail=detail)
        keypoints, labelled = transform.points(person.keypoints), person.labelled
        if random.random() < 0.5:
            image, keypoints, labelled = mirrored(image, keypoints, labelled)
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        return tensor, torch.from_numpy(keypoints), torch.from_numpy(labelled)

    def _look(self, random: np.random.Generator, person: Person) -> tuple[Transform, float]:
        """A jittered transform of the person and how much detail it shows."""
        context = CONTEXT * _SCALE_JITTER ** random.uniform(-1, 1)
        transform = crop_transform(person.box, height=self.height, width=self.width, context=context)
        dx, dy = random.uniform(-_SHIFT_JITTER, _SHIFT_JITTER, 2) * (self.width, self.height)
        transform = replace(transform, shift=(transform.shift[0] + dx, transform.shift[1] + dy))
        if random.random() >= _COARSE_SHARE:
            return transform, 1.0
        tall = math.exp(random.uniform(*np.log(_COARSE_HEIGHTS)))
        return transform, _detail(transform, person.box, tall)


def mirrored(
    image: ImageArray, keypoints: FloatArray, labelled: BoolArray
) -> tuple[ImageArray, FloatArray, BoolArray]:
    """The left-right mirrored crop: columns reversed, left and right keypoints swapped."""
    swapped = keypoints[list(FLIP)]
    swapped[:, 0] = image.shape[1] - 1 - swapped[:, 0]
    return image[:, ::-1], swapped, labelled[list(FLIP)]
