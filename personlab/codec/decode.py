"""Fields -> people: voting, grouping, scores and masks (paper, sections 3.1 and 3.2).

The input is a pyramid of one or more levels, each the fields of the same image at its own scale. All levels
vote into one accumulator, and every step of a trace is the weighted mean of their offsets. A mask is that of
the level whose embeddings agree best with the pose. Decoding runs on the host; fields on a GPU are copied
there first.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Final, Literal, Self

import cv2
import numpy as np
import torch
from pycocotools import mask as rle_tools
from torch import Tensor

from personlab.codec.extensions import EXTENSIONS, Extension
from personlab.codec.fields import Fields
from personlab.codec.group import find_people, presence
from personlab.codec.guided import POINTS, guided_seg
from personlab.codec.hough import HoughMap, vote
from personlab.codec.loops import array
from personlab.codec.masks import (
    agreement,
    embedding_distance,
    full_resolution,
    person_pixels,
    refine_long,
    rivals,
)
from personlab.codec.pyramid import Frame, Level
from personlab.codec.refine import STEPS
from personlab.codec.score import (
    Poses,
    best_first,
    expected_oks,
    extent,
    hard_nms,
    hough_scores,
    score_by_person,
    soft_nms,
)
from personlab.codec.shift import mean_shift
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.people import Detection
from personlab.skeleton import COCO_PERSON, Skeleton

# How many poses are scored for each person that may be found, and for how many people at least. More, of the
# hundreds of seeds of a crowd or the thousands of an untrained network, only cost time.
_CANDIDATES: Final = 10
_FEW_CANDIDATES: Final = 3
_LEAST_PEOPLE: Final = 20
_MOST_CANDIDATES: Final = 1000

__all__ = ["Decoder", "Level", "Poses", "detections"]


@dataclass(frozen=True)
class Regions:
    """Where the pixels of some poses may be: equation 6 on every level."""

    levels: Sequence[Level]  # long-range offsets refined
    distances: Sequence[Tensor]  # of each level, N x H x W
    best: Tensor  # N, the level whose embeddings agree best with the pose
    person: Tensor  # N, mean p_S there, over the cells within the threshold
    distance: Tensor  # N, their mean distance

    def select(self, index: Tensor) -> Self:
        chosen = (tensor[index] for tensor in (self.best, self.person, self.distance))
        return type(self)(self.levels, [distance[index] for distance in self.distances], *chosen)


@dataclass(frozen=True)
class Decoder:
    """How fields become people. The paper's decoder has no `extensions` and 2 `trace_refinements`.

    Lengths are in input pixels.
    """

    radius: float = 32.0
    nms_radius: float = 10.0
    bin: float = 2.0
    seed_threshold: float = 0.01
    trace_refinements: int = 4
    long_refinements: int = STEPS
    mask_distance: float = 0.25
    scoring: Literal["expected-oks", "hough"] = "expected-oks"
    nms: Literal["soft", "hard"] = "soft"
    max_people: int = 20
    extensions: Collection[Extension] = EXTENSIONS
    skeleton: Skeleton = COCO_PERSON

    def people(
        self, levels: Sequence[Level], *, height: int, width: int, image: ImageArray | None = None
    ) -> Iterator[Detection]:
        """The people of one height x width image, best first, at most `max_people`; see `decode`."""
        return detections(*self.decode(levels, height=height, width=width, image=image))

    def decode(
        self, levels: Sequence[Level], *, height: int, width: int, image: ImageArray | None = None
    ) -> tuple[Poses, Iterator[Tensor | None]]:
        """The poses in one height x width image, best first, at most `max_people`, and the mask of each.

        Masks are height x width bool and are drawn one at a time; None if the fields have no masks.

        Args:
            image: height x width x 3 uint8, RGB; its edges guide the outlines of masks. Without it they are
                those of the fields.

        Raises:
            ValueError: a field holds a value that is not finite.
        """
        poses, regions = self._find(levels, height=height, width=width)
        if regions is None:
            return poses, repeat(None, len(poses.scores))
        return poses, self._draw(poses, regions, image, height=height, width=width)

    def poses(self, levels: Sequence[Level], *, height: int, width: int) -> Poses:
        """The poses of `decode` alone, in image pixels.

        Raises:
            ValueError: a field holds a value that is not finite.
        """
        return self._find(levels, height=height, width=width)[0]

    def masks(
        self,
        levels: Sequence[Level],
        poses: Poses,
        *,
        height: int,
        width: int,
        image: ImageArray | None = None,
    ) -> Iterator[Tensor]:
        """The mask of each pose, height x width bool, in the order of `poses`.

        Args:
            image: as in `decode`.

        Raises:
            UserError: the fields are those of a network that finds poses only.
        """
        if not all(level.fields.has_masks for level in levels):
            raise UserError(
                "these weights find poses only, not masks (PoseNet has no segmentation): "
                "ask for poses, or use weights that have masks"
            )
        regions = self._regions(_on_host(levels), poses)
        return self._draw(poses, regions, image, height=height, width=width)

    def _find(self, levels: Sequence[Level], *, height: int, width: int) -> tuple[Poses, Regions | None]:
        """The poses, and where their masks are, if the fields have masks."""
        levels = _on_host(levels)
        for level in levels:
            _check_finite(level.fields)
        poses = self._poses(levels, Frame.common(levels, height, width))
        if not all(level.fields.has_masks for level in levels):
            return poses, None
        regions = self._regions(levels, poses)
        if self._adds("person-score"):
            poses = score_by_person(poses, regions.person, regions.distance / self.mask_distance)
        order = best_first(poses.scores)
        return poses.select(order), regions.select(order)

    def _poses(self, levels: Sequence[Level], frame: Frame) -> Poses:
        hough, seeds = vote(levels, frame, radius=self.radius, bin=self.bin, threshold=self.seed_threshold)
        per_person = _FEW_CANDIDATES if self._adds("few-candidates") else _CANDIDATES
        keypoints = find_people(
            levels,
            frame,
            seeds,
            trace_refinements=self.trace_refinements,
            nms_radius=self.nms_radius,
            most=min(per_person * max(self.max_people, _LEAST_PEOPLE), _MOST_CANDIDATES),
            skeleton=self.skeleton,
        )
        present = presence(levels, frame, keypoints)
        if self._adds("mean-shift"):
            keypoints = mean_shift(
                hough,
                keypoints,
                extent(keypoints, present),
                radius=self.radius,
                kappas=self.skeleton.kappas,
            )
            present = presence(levels, frame, keypoints)
        best = self._suppress(self._score(hough, keypoints, present))
        return best.select(slice(self.max_people)).scaled(1 / frame.scale)

    def _score(self, hough: HoughMap, keypoints: Tensor, present: Tensor) -> Poses:
        if self.scoring == "hough":
            return Poses.of(keypoints, present, hough_scores(hough, keypoints))
        scores = expected_oks(hough, keypoints, present, radius=self.radius, kappas=self.skeleton.kappas)
        return Poses.of(keypoints, present, scores)

    def _suppress(self, poses: Poses) -> Poses:
        if self.nms == "hard":
            return hard_nms(poses, kappas=self.skeleton.kappas)
        return soft_nms(poses, nms_radius=self.nms_radius)

    def _regions(self, levels: Sequence[Level], poses: Poses) -> Regions:
        refined, distances, means = [], [], []
        for level in levels:
            fields = refine_long(level.fields, self.long_refinements)
            seen = poses.scaled(level.scale)
            lambdas = seen.extent(whole=self._adds("full-extent"))
            distance = embedding_distance(fields, seen.keypoints, seen.presence, lambdas)
            refined.append(replace(level, fields=fields))
            distances.append(distance)
            means.append(agreement(fields.seg[0], distance, self.mask_distance))
        person, distance = (torch.stack(each) for each in zip(*means, strict=True))  # levels x N
        best = distance.argmin(0)
        return Regions(
            refined, distances, best, *(each.gather(0, best[None])[0] for each in (person, distance))
        )

    def _draw(
        self, poses: Poses, regions: Regions, image: ImageArray | None, *, height: int, width: int
    ) -> Iterator[Tensor]:
        person, rival = dict[int, Tensor](), dict[int, Tensor]()  # by level
        for j, best in enumerate(regions.best.tolist()):
            level, distance = regions.levels[best], regions.distances[best]
            step = level.scale / level.fields.stride
            if best not in person:
                person[best] = self._person(level.fields.seg[0], distance, image, step, height, width)
                rival[best] = torch.full_like(distance, torch.inf)
                if self._adds("exclusive-masks"):
                    rival[best] = rivals(distance, poses.unclaimed)
            yield full_resolution(
                person[best], distance[j], rival[best][j], step=step, threshold=self.mask_distance
            )

    def _person(
        self, seg: Tensor, distance: Tensor, image: ImageArray | None, step: float, height: int, width: int
    ) -> Tensor:
        """The pixels that show a person, height x width bool."""
        if image is not None and self._adds("guided-masks"):
            near = (distance <= self.mask_distance).any(0)
            seg, step = guided_seg(seg, image, near, step=step), step * POINTS
        return person_pixels(seg, step=step, height=height, width=width)

    def _adds(self, extension: Extension) -> bool:
        return extension in self.extensions


def detections(poses: Poses, masks: Iterable[Tensor | None]) -> Iterator[Detection]:
    """Poses and their masks (height x width bool, in the same order; None without one) as people."""
    rows = zip(poses.keypoints, poses.keypoint_scores, poses.scores, masks, strict=True)
    for keypoints, keypoint_scores, score, mask in rows:
        yield Detection(
            keypoints=keypoints.numpy(),
            keypoint_scores=keypoint_scores.numpy(),
            score=float(score),
            rle=b"" if mask is None else _rle(mask),
        )


def _rle(mask: Tensor) -> bytes:
    """COCO's compressed run lengths, which go column by column. OpenCV transposes faster than numpy."""
    by_column = cv2.transpose(mask.numpy().view("uint8")).T
    counts: bytes = rle_tools.encode(by_column)["counts"]
    return counts


def _on_host(levels: Iterable[Level]) -> list[Level]:
    return [replace(level, fields=level.fields.to("cpu")) for level in levels]


def _check_finite(fields: Fields) -> None:
    for name, tensor in fields.tensors().items():
        values = array(tensor)
        # the least and the greatest value keep a NaN; a network without masks leaves some fields empty
        if values.size and not (np.isfinite(values.max()) and np.isfinite(values.min())):
            raise ValueError(f"field '{name}' holds a value that is not finite")
