"""Fields -> people: voting, grouping, scoring and masks in one walk (paper, sections 3.1 and 3.2).

The input is a pyramid of one or more levels, each the fields of the same image at its own scale. All levels
vote into one accumulator and are asked the way at every step of a trace, each with its share; a mask is that
of the level whose embeddings agree best with the pose. One level is simply a pyramid of one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from personlab.codec import compiled, vectorised
from personlab.codec.fields import Fields
from personlab.codec.hough import HoughMap
from personlab.codec.masks import disagreement
from personlab.codec.pyramid import Frame, Level
from personlab.codec.score import Poses, hard_nms, hough_scores, soft_nms
from personlab.codec.vectorised import Grouped, Steps
from personlab.errors import UserError

# Seeds come best first. Poses of so many of them are scored: ten for each person that may be found, within
# these bounds. The hundreds that a crowd seeds beyond, or the thousands of an untrained network, would only
# cost time.
_CANDIDATES_EACH = 10
_CANDIDATES = (200, 1000)

__all__ = ["Decoder", "Level", "Poses"]


@dataclass(frozen=True)
class Decoder:
    """How fields become people; the defaults are the paper's. Lengths are in input pixels."""

    radius: float = 32.0
    nms_radius: float = 10.0
    bin: float = 2.0
    seed_threshold: float = 0.01
    trace_refinements: int = 4
    long_refinements: int = 2
    mask_distance: float = 0.25
    scoring: Literal["expected-oks", "hough"] = "expected-oks"
    nms: Literal["soft", "hard"] = "soft"
    max_people: int = 20

    def poses(self, levels: Sequence[Level], *, height: int, width: int) -> Poses:
        """The people of one height x width image, in its pixels, best first, at most `max_people`.

        Raises:
            ValueError: a field holds a value that is not finite.
        """
        steps = steps_for(levels[0].fields.heatmap.device)
        for level in levels:
            _check_finite(level.fields, steps)
        frame = Frame.common(levels, height, width)
        hough, seeds = steps.vote(
            levels, frame, radius=self.radius, bin=self.bin, threshold=self.seed_threshold
        )
        people = steps.find_people(
            levels,
            frame,
            seeds,
            mid_steps=self.trace_refinements,
            nms_radius=self.nms_radius,
            most=min(max(_CANDIDATES_EACH * self.max_people, _CANDIDATES[0]), _CANDIDATES[1]),
        )
        best = self._suppress(steps, self._score(steps, hough, people))
        return best.select(slice(self.max_people)).scaled(1 / frame.scale)

    def masks(self, levels: Sequence[Level], poses: Poses, *, height: int, width: int) -> Iterator[Tensor]:
        """The mask of each person found, height x width bool, in the order of `poses`.

        Raises:
            UserError: the fields are those of a network that finds poses only.
        """
        if not all(level.fields.has_masks for level in levels):
            raise UserError(
                "these weights find poses only, not masks (PoseNet has no segmentation): "
                "ask for poses, or use weights that have masks"
            )
        steps = steps_for(levels[0].fields.seg.device)
        refined = [steps.refine_long(level.fields, self.long_refinements) for level in levels]
        distances = [
            steps.embedding_distance(fields, seen.keypoints, seen.presence, seen.extent())
            for fields, seen in zip(refined, (poses.scaled(level.scale) for level in levels), strict=True)
        ]
        apart = torch.stack([disagreement(distance, self.mask_distance) for distance in distances])
        for person, best in enumerate(apart.argmin(0).tolist()):
            yield from steps.full_resolution(
                refined[best].seg[0],
                distances[best][person : person + 1],
                step=levels[best].scale / refined[best].stride,
                height=height,
                width=width,
                threshold=self.mask_distance,
            )

    def _score(self, steps: Steps, hough: HoughMap, people: Grouped) -> Poses:
        if self.scoring == "hough":
            scores = hough_scores(hough, people.keypoints)
        else:
            scores = steps.expected_oks(hough, people.keypoints, people.presence, radius=self.radius)
        return Poses(people.keypoints, people.presence, keypoint_scores=scores, scores=scores.mean(1))

    def _suppress(self, steps: Steps, poses: Poses) -> Poses:
        if self.nms == "hard":
            return hard_nms(poses)
        return soft_nms(poses, nms_radius=self.nms_radius, claimed=steps.claimed)


def steps_for(device: torch.device) -> Steps:
    """Loops on the CPU, vectorised everywhere else: the same results."""
    return compiled if device.type == "cpu" else vectorised


def _check_finite(fields: Fields, steps: Steps) -> None:
    for name, tensor in fields.tensors().items():
        if tensor.numel() and not steps.is_finite(tensor):  # a network without masks leaves some empty
            raise ValueError(f"field '{name}' holds a value that is not finite")
