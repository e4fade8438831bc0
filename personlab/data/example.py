"""Training examples: an image and its people through a transform to the network's input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle_tools
from torch import Tensor

from personlab.codec.encode import Instances
from personlab.codec.fields import cells
from personlab.data.images import pixels
from personlab.data.transform import Transform
from personlab.people import Annotation, BoolArray
from personlab.skeleton import Skeleton


@dataclass(frozen=True)
class Example:
    """An input image and its people, in input pixels."""

    image_id: int
    image: Tensor  # 3 x H x W uint8 RGB
    people: Instances


def example(row: Mapping[str, Any], transform: Transform, *, stride: int, skeleton: Skeleton) -> Example:
    """Apply a transform to a row of tables.IMAGES with its `people`.

    Args:
        stride: output stride at which masks are sampled.

    Raises:
        UserError: the image cannot be decoded.
    """
    people = [Annotation.from_row(record) for record in row["people"]]
    image = transform.image(pixels(row))
    return Example(
        image_id=row["image_id"],
        image=torch.from_numpy(image).permute(2, 0, 1),
        people=project_people(
            people, transform, height=row["height"], width=row["width"], stride=stride, skeleton=skeleton
        ),
    )


def project_people(
    people: Sequence[Annotation],
    transform: Transform,
    *,
    height: int,
    width: int,
    stride: int,
    skeleton: Skeleton,
) -> Instances:
    """Apply a transform to the annotated people of a height x width image, for `codec.encode`.

    A mirrored transform swaps left and right keypoints.
    """
    count = len(skeleton.keypoints)
    if not people:
        return Instances(
            keypoints=torch.zeros(0, count, 2),
            labelled=torch.zeros(0, count, dtype=torch.bool),
            masks=torch.zeros(0, cells(transform.height, stride), cells(transform.width, stride)),
            crowd=torch.zeros(0, dtype=torch.bool),
            imputed=torch.zeros(0, dtype=torch.bool),
            unmasked=torch.zeros(0, dtype=torch.bool),
        )
    order = list(skeleton.flip or ()) if transform.mirror_width else list(range(count))
    keypoints = transform.points(np.stack([person.keypoints for person in people]))[:, order]
    labelled = np.stack([person.visibility > 0 for person in people])[:, order]
    masks = transform.coverage(_regions(people, height=height, width=width), stride)
    return Instances(
        keypoints=torch.from_numpy(np.ascontiguousarray(keypoints)),
        labelled=torch.from_numpy(np.ascontiguousarray(labelled)),
        masks=torch.from_numpy(masks),
        crowd=torch.tensor([person.crowd for person in people]),
        imputed=torch.tensor([person.imputed for person in people]),
        unmasked=torch.tensor([not person.rle for person in people]),
    )


def _regions(people: Sequence[Annotation], *, height: int, width: int) -> BoolArray:
    """Where each person is: its mask or, without one, its box and labelled keypoints. P x height x width."""
    if all(person.rle for person in people):
        return decode_masks(people, height=height, width=width)
    regions = np.zeros((len(people), height, width), bool)
    for region, person in zip(regions, people, strict=True):
        if person.rle:
            region[:] = decode_masks([person], height=height, width=width)[0]
            continue
        x, y, w, h = person.box
        points = np.vstack(([(x, y), (x + w, y + h)], person.keypoints[person.visibility > 0]))
        left, top = np.maximum(np.floor(points.min(axis=0)), 0).astype(int)
        right, bottom = np.ceil(points.max(axis=0)).astype(int)
        region[top : bottom + 1, left : right + 1] = True
    return regions


def decode_masks(people: Sequence[Annotation], *, height: int, width: int) -> BoolArray:
    """Masks of annotated people: P x height x width."""
    stacked = rle_tools.decode([{"size": [height, width], "counts": p.rle} for p in people])  # h x w x P
    masks: BoolArray = np.moveaxis(stacked, -1, 0).astype(bool)
    return masks
