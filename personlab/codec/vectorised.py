"""The steps of decoding, vectorised for any device; `compiled` has the same ones as loops for the CPU.

Everything takes all levels of a pyramid at once: their votes meet in one accumulator, and at every place
their offsets are averaged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from personlab.codec import group, hough
from personlab.codec.fields import Fields
from personlab.codec.group import Seeds
from personlab.codec.hough import HoughMap, Votes
from personlab.codec.masks import embedding_distance, full_resolution
from personlab.codec.pyramid import Frame, Level, shares
from personlab.codec.refine import refine
from personlab.codec.score import claimed, expected_oks, presence

__all__ = [
    "Grouped",
    "Steps",
    "claimed",
    "embedding_distance",
    "expected_oks",
    "find_people",
    "full_resolution",
    "is_finite",
    "refine_long",
    "vote",
]


@dataclass(frozen=True)
class Grouped:
    """The poses that seeds have grown to, in the order of their seeds."""

    keypoints: Tensor  # N x K x 2, frame pixels
    presence: Tensor  # N x K


class Steps(Protocol):
    """The steps of decoding that there are two implementations of: this module and `compiled`."""

    def is_finite(self, tensor: Tensor) -> bool:
        """Whether every value is."""

    def vote(
        self, levels: Sequence[Level], frame: Frame, *, radius: float, bin: float, threshold: float
    ) -> tuple[HoughMap, Seeds]:
        """Every level's votes in one accumulator, each level with its share, and the maxima there."""

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
        """The poses of the seeds that are nobody's yet: at most `most`, of the best seeds."""

    def expected_oks(self, hough: HoughMap, keypoints: Tensor, present: Tensor, *, radius: float) -> Tensor:
        """Equation 3: N x K."""

    def claimed(self, keypoints: Tensor, *, radius: float) -> Tensor:
        """Which keypoints of poses, best first, a better pose has within `radius` pixels: N x K."""

    def refine_long(self, fields: Fields, steps: int) -> Fields:
        """Equation 5 at person cells (masks.PERSON); what long-range offsets are elsewhere is left open."""

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
        weight=torch.cat([v.weight * share for v, share in zip(cast, shares(levels), strict=True)]),
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
    keypoints = group.trace(levels, frame, seeds, mid_steps=mid_steps)
    keypoints = keypoints[group.accept(seeds, keypoints, nms_radius=nms_radius, most=most)]
    return Grouped(keypoints, _presence(levels, frame, keypoints))


def _presence(levels: Sequence[Level], frame: Frame, keypoints: Tensor) -> Tensor:
    """p_k(y_jk), the mean over the levels: N x K."""
    present = torch.zeros_like(keypoints[..., 0])
    for level in levels:
        ratio = level.scale / frame.scale
        height, width = (frame.height - 1) * ratio, (frame.width - 1) * ratio
        present += presence(level.fields, keypoints * ratio, height=height, width=width)
    return present / len(levels)


def refine_long(fields: Fields, steps: int) -> Fields:
    return refine(fields, mid_steps=0, long_steps=steps)
