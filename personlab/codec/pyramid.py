"""A pyramid of fields: votes of all levels in one accumulator, every seed traced where it is seen best.

Offsets stay in pixels of their own level until they have become places; places meet in pixels of a common
frame. One level is simply a pyramid of one. Everything here is vectorised and runs on any device;
`compiled` has the same steps as loops for the CPU.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from personlab.codec import group, hough
from personlab.codec.fields import Fields
from personlab.codec.group import Seeds
from personlab.codec.hough import HoughMap, Votes
from personlab.codec.masks import embedding_distance, full_resolution
from personlab.codec.score import claimed, expected_oks, presence

__all__ = [
    "Frame",
    "Grouped",
    "Level",
    "Steps",
    "claimed",
    "embedding_distance",
    "expected_oks",
    "find_people",
    "full_resolution",
    "is_finite",
    "vote",
]


@dataclass(frozen=True)
class Level:
    """The fields of one image at one scale: probabilities, offsets as the network gave them."""

    fields: Fields
    scale: float  # input pixels per image pixel


@dataclass(frozen=True)
class Frame:
    """The pixels in which votes meet and poses are compared: the levels' geometric mean scale."""

    scale: float  # frame pixels per image pixel
    height: float
    width: float

    @classmethod
    def common(cls, levels: Sequence[Level], height: int, width: int) -> Self:
        scale = math.exp(sum(math.log(level.scale) for level in levels) / len(levels))
        return cls(scale, (height - 1) * scale + 1, (width - 1) * scale + 1)


@dataclass(frozen=True)
class Grouped:
    """The poses that seeds have grown to, in the order of their seeds."""

    keypoints: Tensor  # N x K x 2, frame pixels
    presence: Tensor  # N x K
    level_of: Tensor  # N, the level that is surest of the pose


class Steps(Protocol):
    """The steps of decoding that there are two implementations of: this module and `compiled`."""

    def is_finite(self, tensor: Tensor) -> bool:
        """Whether every value is."""

    def vote(
        self, levels: Sequence[Level], frame: Frame, *, radius: float, bin: float, threshold: float
    ) -> tuple[HoughMap, Seeds]:
        """Every level's votes in one accumulator, each level with an equal say, and the maxima there."""

    def find_people(
        self,
        levels: Sequence[Level],
        frame: Frame,
        seeds: Seeds,
        *,
        mid_steps: int,
        nms_radius: float,
        most: int,
    ) -> Grouped:
        """The poses of the seeds that are nobody's yet, each traced at the level that is surest of it.

        At most `most`, of the best seeds.
        """

    def expected_oks(self, hough: HoughMap, keypoints: Tensor, present: Tensor, *, radius: float) -> Tensor:
        """Equation 3: N x K."""

    def claimed(self, keypoints: Tensor, *, radius: float) -> Tensor:
        """Which keypoints of poses, best first, a better pose has within `radius` pixels: N x K."""

    def embedding_distance(
        self, fields: Fields, keypoints: Tensor, present: Tensor, lambdas: Tensor
    ) -> Tensor:
        """Equation 6: N x H x W, as `masks.embedding_distance`."""

    def full_resolution(
        self, seg: Tensor, distance: Tensor, *, step: float, height: int, width: int, threshold: float
    ) -> Iterator[Tensor]:
        """Masks over the whole image, as `masks.full_resolution`."""


def is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def vote(
    levels: Sequence[Level], frame: Frame, *, radius: float, bin: float, threshold: float
) -> tuple[HoughMap, Seeds]:
    cast = [hough.cast_votes(level.fields, radius=radius) for level in levels]
    votes = Votes(
        xy=torch.cat([v.xy * (frame.scale / level.scale) for v, level in zip(cast, levels, strict=True)]),
        kind=torch.cat([v.kind for v in cast]),
        weight=torch.cat([v.weight / len(levels) for v in cast]),
    )
    score = hough.accumulate(votes, height=frame.height, width=frame.width, bin=bin)
    return score, group.find_seeds(score, threshold=threshold)


def find_people(
    levels: Sequence[Level],
    frame: Frame,
    seeds: Seeds,
    *,
    mid_steps: int,
    nms_radius: float,
    most: int,
) -> Grouped:
    keypoints, present = [], []
    for level in levels:
        ratio = level.scale / frame.scale
        traced = group.trace(level.fields, seeds.scaled(ratio), mid_steps=mid_steps)
        height, width = (frame.height - 1) * ratio, (frame.width - 1) * ratio
        keypoints.append(traced / ratio)
        present.append(presence(level.fields, traced, height=height, width=width))
    surest = torch.stack([p.mean(1) for p in present]).argmax(0)
    each = torch.arange(len(surest), device=surest.device)
    poses, there = torch.stack(keypoints)[surest, each], torch.stack(present)[surest, each]
    unique = group.accept(seeds, poses, nms_radius=nms_radius, most=most)
    return Grouped(poses[unique], there[unique], surest[unique])
