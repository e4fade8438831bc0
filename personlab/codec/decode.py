"""Fields -> people: voting, grouping, scores and masks (paper, sections 3.1 and 3.2).

The input is a pyramid of one or more levels, each the fields of the same image at its own scale. All levels
vote into one accumulator, and every step of a trace is the weighted mean of their offsets. A mask is that of
the level whose embeddings agree best with the pose. Decoding runs on the host; fields on a GPU are copied
there first.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import cv2
import numpy as np
import torch
from pycocotools import mask as rle_tools
from torch import Tensor

from personlab.codec.fields import Fields
from personlab.codec.group import find_people, presence
from personlab.codec.hough import HoughMap, vote
from personlab.codec.loops import array
from personlab.codec.masks import embedding_distance, full_resolution, mean_distance, refine_long
from personlab.codec.pyramid import Frame, Level
from personlab.codec.refine import STEPS
from personlab.codec.score import Poses, expected_oks, hard_nms, hough_scores, soft_nms
from personlab.errors import UserError
from personlab.people import Detection
from personlab.skeleton import COCO_PERSON, Skeleton

# How many poses are scored: ten for each person that may be found, within these bounds. More, of the hundreds
# of seeds of a crowd or the thousands of an untrained network, only cost time.
_CANDIDATES_PER_PERSON: Final = 10
_CANDIDATES: Final = (200, 1000)

__all__ = ["Decoder", "Level", "Poses", "detections"]


@dataclass(frozen=True)
class Decoder:
    """How fields become people; the defaults are the paper's, but for `trace_refinements` (there 2).

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
    skeleton: Skeleton = COCO_PERSON

    def poses(self, levels: Sequence[Level], *, height: int, width: int) -> Poses:
        """The people of one height x width image, in its pixels, best first, at most `max_people`.

        Raises:
            ValueError: a field holds a value that is not finite.
        """
        levels = [replace(level, fields=level.fields.to("cpu")) for level in levels]
        for level in levels:
            _check_finite(level.fields)
        frame = Frame.common(levels, height, width)
        hough, seeds = vote(levels, frame, radius=self.radius, bin=self.bin, threshold=self.seed_threshold)
        keypoints = find_people(
            levels,
            frame,
            seeds,
            trace_refinements=self.trace_refinements,
            nms_radius=self.nms_radius,
            most=min(max(_CANDIDATES_PER_PERSON * self.max_people, _CANDIDATES[0]), _CANDIDATES[1]),
            skeleton=self.skeleton,
        )
        best = self._suppress(self._score(hough, keypoints, presence(levels, frame, keypoints)))
        return best.select(slice(self.max_people)).scaled(1 / frame.scale)

    def masks(self, levels: Sequence[Level], poses: Poses, *, height: int, width: int) -> Iterator[Tensor]:
        """The mask of each pose, height x width bool, in the order of `poses`.

        Raises:
            UserError: the fields are those of a network that finds poses only.
        """
        if not all(level.fields.has_masks for level in levels):
            raise UserError(
                "these weights find poses only, not masks (PoseNet has no segmentation): "
                "ask for poses, or use weights that have masks"
            )
        refined = [refine_long(level.fields.to("cpu"), self.long_refinements) for level in levels]
        distances = []
        for fields, level in zip(refined, levels, strict=True):
            seen = poses.scaled(level.scale)
            distances.append(embedding_distance(fields, seen.keypoints, seen.presence, seen.extent()))
        means = torch.stack([mean_distance(distance, self.mask_distance) for distance in distances])
        for person, best in enumerate(means.argmin(0).tolist()):
            yield full_resolution(
                refined[best].seg[0],
                distances[best][person],
                step=levels[best].scale / refined[best].stride,
                height=height,
                width=width,
                threshold=self.mask_distance,
            )

    def _score(self, hough: HoughMap, keypoints: Tensor, present: Tensor) -> Poses:
        if self.scoring == "hough":
            scores = hough_scores(hough, keypoints)
        else:
            scores = expected_oks(hough, keypoints, present, kappas=self.skeleton.kappas, radius=self.radius)
        return Poses(keypoints, present, keypoint_scores=scores, scores=scores.mean(1))

    def _suppress(self, poses: Poses) -> Poses:
        if self.nms == "hard":
            return hard_nms(poses, kappas=self.skeleton.kappas)
        return soft_nms(poses, nms_radius=self.nms_radius)


def detections(poses: Poses, masks: Iterable[Tensor | None]) -> Iterator[Detection]:
    """Poses and their masks (height x width bool, in the same order; None without one) as people."""
    rows = zip(poses.keypoints, poses.keypoint_scores, poses.scores, strict=True)
    for (keypoints, keypoint_scores, score), mask in zip(rows, masks, strict=True):
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


def _check_finite(fields: Fields) -> None:
    for name, tensor in fields.tensors().items():
        values = array(tensor)
        # the least and the greatest value keep a NaN; a network without masks leaves some fields empty
        if values.size and not (np.isfinite(values.max()) and np.isfinite(values.min())):
            raise ValueError(f"field '{name}' holds a value that is not finite")
