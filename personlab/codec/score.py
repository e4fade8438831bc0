"""Scores of keypoints and poses (paper, equations 3 and 4), and non-maximum suppression of poses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from personlab.codec.group import is_claimed
from personlab.codec.hough import HoughMap
from personlab.codec.loops import Array, array, compiled
from personlab.skeleton import COCO_PERSON

# A keypoint counts as detected, and so into a person's extent, from this presence on.
DETECTED: Final = 0.5

# Hard NMS removes a pose whose OKS with a better one is above this (G-RMI).
HARD_NMS_OKS: Final = 0.5


@dataclass(frozen=True)
class Poses:
    """Poses of one image, best first."""

    keypoints: Tensor  # N x K x 2, pixels
    presence: Tensor  # N x K, p_k(y_jk)
    keypoint_scores: Tensor  # N x K
    scores: Tensor  # N

    def select(self, index: Tensor | slice) -> Self:
        return type(self)(*(tensor[index] for tensor in vars(self).values()))

    def scaled(self, factor: float) -> Self:
        """The same poses in an image `factor` times the size."""
        return replace(self, keypoints=self.keypoints * factor)

    def extent(self) -> Tensor:
        """lambda_j of every pose, in pixels: N."""
        return extent(self.keypoints, self.presence)


def extent(keypoints: Tensor, presence: Tensor) -> Tensor:
    """lambda_j: the square root of the area of the box around the *detected* keypoints of each pose, N.

    keypoints N x K x 2 in pixels, presence N x K. A pose with fewer than two detected keypoints has no box of
    its own; it is measured by all its keypoints. No side is under one pixel.
    """
    detected = presence >= DETECTED
    detected = detected | (detected.sum(1) < 2)[:, None]
    low = keypoints.masked_fill(~detected[..., None], torch.inf).amin(1)
    high = keypoints.masked_fill(~detected[..., None], -torch.inf).amax(1)
    return (high - low).clamp(min=1.0).prod(-1).sqrt()


def hough_scores(hough: HoughMap, keypoints: Tensor) -> Tensor:
    """s_jk = h_k(y_jk), after G-RMI: N x K."""
    rows, columns = hough.score.shape[-2:]
    scale = keypoints.new_tensor([2 / (hough.bin * max(columns - 1, 1)), 2 / (hough.bin * max(rows - 1, 1))])
    grid = (keypoints * scale - 1).transpose(0, 1)[:, :, None]
    return F.grid_sample(hough.score[:, None], grid, padding_mode="zeros", align_corners=True)[:, 0, :, 0].T


def expected_oks(
    hough: HoughMap,
    keypoints: Tensor,
    presence: Tensor,
    *,
    radius: float,
    kappas: Sequence[float] = COCO_PERSON.kappas,
) -> Tensor:
    """Equation 3: p_k(y) times the mean of exp(-|x - y|^2 / (2 lambda^2 kappa_k^2)) over the disk around y,
    weighted by the score map: N x K. Where the disk holds no votes, the score is 0.
    """
    tolerance = 2 * (extent(keypoints, presence)[:, None] * keypoints.new_tensor(kappas)).square()
    expected = _expected_oks(array(hough.score), hough.bin, array(keypoints), array(tolerance), radius)
    return presence * torch.from_numpy(expected)


@compiled
def _expected_oks(score: Array, bin: float, keypoints: Array, tolerance: Array, radius: float) -> Array:
    """The mean of exp(-|x - y|^2 / tolerance) over the disk around y, weighted by the score map: N x K."""
    expected = np.zeros(tolerance.shape, score.dtype)
    rows, columns = score.shape[1:]
    for k in range(score.shape[0]):  # one map after the other: memory bounds the speed
        for n in range(len(keypoints)):
            x, y = keypoints[n, k]
            first, last = _bins_between(x - radius, x + radius, bin, columns)
            mass = likeness = 0.0
            for i in range(*_bins_between(y - radius, y + radius, bin, rows)):
                row = score[k, i, first:last]
                if _total(row) == 0:
                    continue
                dy2 = (bin * i - y) ** 2
                for j, weight in enumerate(row):
                    if weight > 0:
                        squared = (bin * (first + j) - x) ** 2 + dy2
                        if squared <= radius**2:
                            mass += weight
                            likeness += weight * math.exp(-squared / tolerance[n, k])
            if mass > 0:
                expected[n, k] = likeness / mass
    return expected


@njit(cache=True, fastmath={"reassoc"})  # type: ignore[untyped-decorator]
def _total(row: Array) -> float:
    """The sum in any order, so that several values are added at a time."""
    total = row.dtype.type(0)
    for value in row:
        total += value
    return float(total)


@compiled
def _bins_between(low: float, high: float, bin: float, bins: int) -> tuple[int, int]:
    """The bins, first and one past the last, whose centres lie from `low` to `high` pixels."""
    first = min(max(0.0, math.ceil(low / bin)), float(bins))
    last = min(max(-1.0, math.floor(high / bin)), bins - 1.0)
    return int(first), int(last) + 1


def soft_nms(poses: Poses, *, nms_radius: float) -> Poses:
    """Equation 4: a pose's score is the sum of its keypoint scores that no better pose claims, over K.

    A better pose claims a keypoint if it has the same keypoint within `nms_radius` pixels. Returns the poses,
    best first.
    """
    poses = poses.select(_best_first(poses.scores))
    claimed = torch.from_numpy(_claimed(array(poses.keypoints), nms_radius**2))
    scores = (poses.keypoint_scores * ~claimed).sum(1) / claimed.shape[1]
    return replace(poses, scores=scores).select(_best_first(scores))


@compiled
def _claimed(keypoints: Array, squared_radius: float) -> npt.NDArray[np.bool_]:
    """Which keypoints of each pose lie within the radius of the same keypoint of an earlier one: N x K."""
    found = np.empty(keypoints.shape[:2], np.bool_)
    for n in range(keypoints.shape[0]):
        for k in range(keypoints.shape[1]):
            found[n, k] = is_claimed(keypoints[:n, k], keypoints[n, k], squared_radius)
    return found


def hard_nms(poses: Poses, *, kappas: Sequence[float] = COCO_PERSON.kappas) -> Poses:
    """Drop every pose whose OKS with a better, kept pose is above 0.5; the others, best first."""
    poses = poses.select(_best_first(poses.scores))
    squared = (poses.keypoints[:, None] - poses.keypoints[None]).square().sum(-1)  # N x N x K
    tolerance = 2 * (poses.extent()[:, None] * squared.new_tensor(kappas)).square()  # the better one's: N x K
    similar = torch.exp(-squared / tolerance[:, None]).mean(-1) > HARD_NMS_OKS  # [better, worse]
    dropped = torch.zeros(len(similar), dtype=torch.bool)
    for better in range(len(similar)):
        if not dropped[better]:
            dropped[better + 1 :] |= similar[better, better + 1 :]
    return poses.select((~dropped).nonzero()[:, 0])


def _best_first(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True)
