"""Fields -> people: voting, grouping, scoring and masks in one walk (paper, sections 3.1 and 3.2).

The input is a pyramid of one or more levels, each the fields of the same image at its own scale. Every
level votes into one accumulator, in pixels of a common frame, so that offsets always stay in pixels of
their own scale until they have become places. Every seed is traced at each level and keeps the pose of the
level that is surest of it. One level is simply a pyramid of one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from personlab.codec.fields import Fields
from personlab.codec.group import Seeds, accept, find_seeds, trace
from personlab.codec.hough import HoughMap, Votes, accumulate, cast_votes
from personlab.codec.masks import embedding_distance, full_resolution
from personlab.codec.refine import refine
from personlab.codec.score import (
    Poses,
    expected_oks,
    hard_nms,
    hough_scores,
    presence,
    soft_nms,
)


@dataclass(frozen=True)
class Level:
    """The fields of one image at one scale: probabilities, offsets as the network gave them."""

    fields: Fields
    scale: float  # input pixels per image pixel


@dataclass(frozen=True)
class Decoder:
    """How fields become people; the defaults are the paper's. Lengths are in input pixels."""

    radius: float = 32.0
    nms_radius: float = 10.0
    bin: float = 2.0
    seed_threshold: float = 0.01
    mid_refinements: int = 2
    long_refinements: int = 2
    mask_distance: float = 0.25
    scoring: Literal["expected-oks", "hough"] = "expected-oks"
    nms: Literal["soft", "hard"] = "soft"
    max_people: int = 20

    def poses(self, levels: Sequence[Level], *, height: int, width: int) -> "Found":
        """The people of one height x width image, best first, at most `max_people`.

        Raises:
            ValueError: a field holds a value that is not finite.
        """
        for level in levels:
            _check_finite(level)
        frame = _Frame.common(levels, height, width)
        hough = self._vote(levels, frame)
        seeds = find_seeds(hough, threshold=self.seed_threshold)
        keypoints, present, level_of = self._trace(levels, frame, seeds)
        unique = accept(seeds, keypoints, nms_radius=self.nms_radius)
        poses = self._score(hough, keypoints[unique], present[unique])
        best, order = self._suppress(poses)
        return Found(
            poses=best.select(slice(self.max_people)).scaled(1 / frame.scale),
            level_of=level_of[unique][order][: self.max_people],
        )

    def masks(self, levels: Sequence[Level], found: "Found", *, height: int, width: int) -> Iterator[Tensor]:
        """The mask of each person found, height x width bool, in the order of `found`."""
        refined = [refine(level.fields, mid_steps=0, long_steps=self.long_refinements) for level in levels]
        for person, level_index in enumerate(found.level_of.tolist()):
            level, fields = levels[level_index], refined[level_index]
            pose = found.poses.select(slice(person, person + 1)).scaled(level.scale)
            yield from full_resolution(
                fields.seg[0],
                embedding_distance(fields, pose.keypoints, pose.presence, pose.extent()),
                step=level.scale / fields.stride,
                height=height,
                width=width,
                threshold=self.mask_distance,
            )

    def _vote(self, levels: Sequence[Level], frame: "_Frame") -> HoughMap:
        """Every level's votes in one accumulator; each level has an equal say."""
        cast = [cast_votes(level.fields, radius=self.radius) for level in levels]
        votes = Votes(
            xy=torch.cat([v.xy * (frame.scale / level.scale) for v, level in zip(cast, levels, strict=True)]),
            kind=torch.cat([v.kind for v in cast]),
            weight=torch.cat([v.weight / len(levels) for v in cast]),
        )
        return accumulate(votes, height=frame.height, width=frame.width, bin=self.bin)

    def _trace(self, levels: Sequence[Level], frame: "_Frame", seeds: Seeds) -> tuple[Tensor, Tensor, Tensor]:
        """Each seed's keypoints (N x K x 2, frame pixels) and presence (N x K) at its surest level (N)."""
        keypoints, present = [], []
        for level in levels:
            ratio = level.scale / frame.scale
            traced = trace(level.fields, seeds.scaled(ratio), mid_steps=self.mid_refinements)
            keypoints.append(traced / ratio)
            present.append(
                presence(
                    level.fields, traced, height=(frame.height - 1) * ratio, width=(frame.width - 1) * ratio
                )
            )
        surest = torch.stack([p.mean(1) for p in present]).argmax(0)
        each = torch.arange(len(surest), device=surest.device)
        return torch.stack(keypoints)[surest, each], torch.stack(present)[surest, each], surest

    def _score(self, hough: HoughMap, keypoints: Tensor, present: Tensor) -> Poses:
        if self.scoring == "hough":
            scores = hough_scores(hough, keypoints)
        else:
            scores = expected_oks(hough, keypoints, present, radius=self.radius)
        return Poses(keypoints, present, keypoint_scores=scores, scores=scores.mean(1))

    def _suppress(self, poses: Poses) -> tuple[Poses, Tensor]:
        if self.nms == "hard":
            return hard_nms(poses)
        return soft_nms(poses, nms_radius=self.nms_radius)


@dataclass(frozen=True)
class Found:
    """People found in one image, in its own pixels, and the level each is seen best at."""

    poses: Poses
    level_of: Tensor  # N


@dataclass(frozen=True)
class _Frame:
    """The pixels in which votes meet and poses are compared: the levels' geometric mean scale."""

    scale: float  # frame pixels per image pixel
    height: float
    width: float

    @classmethod
    def common(cls, levels: Sequence[Level], height: int, width: int) -> Self:
        scale = math.exp(sum(math.log(level.scale) for level in levels) / len(levels))
        return cls(scale, (height - 1) * scale + 1, (width - 1) * scale + 1)


def _check_finite(level: Level) -> None:
    for name, tensor in level.fields.tensors().items():
        if not torch.isfinite(tensor.sum()):
            raise ValueError(f"field '{name}' holds a value that is not finite")
