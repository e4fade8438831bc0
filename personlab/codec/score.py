"""Scores of keypoints and poses (paper, equations 3 and 4), and non-maximum suppression of poses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from personlab.codec.group import is_claimed
from personlab.codec.hough import HoughMap, bins_between
from personlab.codec.loops import Array, array, compiled, dot, total

# A keypoint counts as detected, and so into a person's extent, from this presence on.
DETECTED: Final = 0.5

# The least factor of a person's score for p_S, and for the embeddings: people without cells keep an order.
LEAST: Final = 0.01

# Cells with this mean p_S show a person for certain: the outermost cells of small people are lower.
CERTAIN: Final = 0.92

# Hard NMS removes a pose whose OKS with a better one is above this (G-RMI).
HARD_NMS_OKS: Final = 0.5


@dataclass(frozen=True)
class Poses:
    """Poses of one image, best first once they have been suppressed."""

    keypoints: Tensor  # N x K x 2, pixels
    presence: Tensor  # N x K, p_k(y_jk)
    keypoint_scores: Tensor  # N x K, s_jk
    unclaimed: Tensor  # N x K bool, u_jk: no pose better in soft NMS claims the keypoint (equation 4)
    scores: Tensor  # N

    @classmethod
    def of(cls, keypoints: Tensor, presence: Tensor, keypoint_scores: Tensor) -> Self:
        """Poses before any suppression: scores are the means of those of the keypoints."""
        unclaimed = torch.ones_like(presence, dtype=torch.bool)
        return cls(keypoints, presence, keypoint_scores, unclaimed, keypoint_scores.mean(1))

    def select(self, index: Tensor | slice) -> Self:
        return type(self)(*(tensor[index] for tensor in vars(self).values()))

    def scaled(self, factor: float) -> Self:
        """The same poses in an image `factor` times the size."""
        return replace(self, keypoints=self.keypoints * factor)

    def extent(self, *, whole: bool = False) -> Tensor:
        """lambda_j of every pose, in pixels: N. `whole`: of all keypoints, detected or not."""
        return extent(self.keypoints, torch.ones_like(self.presence) if whole else self.presence)


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
    kappas: Sequence[float],
) -> Tensor:
    """Equation 3: p_k(y) times the mean of exp(-|x - y|^2 / (2 lambda^2 kappa_k^2)) over the disk around y,
    weighted by the score map: N x K. Where the disk holds no votes, the score is 0.
    """
    tolerance = 2 * (extent(keypoints, presence)[:, None] * keypoints.new_tensor(kappas)).square()
    likeness = _likeness(array(hough.score), hough.bin, array(keypoints), array(tolerance), radius)
    return presence * torch.from_numpy(likeness)


@compiled
def _likeness(score: Array, bin: float, keypoints: Array, tolerance: Array, radius: float) -> Array:
    """The mean of exp(-|x - y|^2 / tolerance) over the disk around y, weighted by the score map: N x K."""
    found = np.zeros(tolerance.shape, score.dtype)
    rows, columns = score.shape[1:]
    across = np.empty(columns, score.dtype)
    for k in range(score.shape[0]):  # one map after the other: memory bounds the speed
        for n in range(len(keypoints)):
            x, y = keypoints[n, k]
            left, right = bins_between(x - radius, x + radius, bin, columns)
            # the exponential of a sum of squares is a product
            for j in range(left, right):
                across[j] = math.exp(-((bin * j - x) ** 2) / tolerance[n, k])
            mass = weighted = 0.0
            for i in range(*bins_between(y - radius, y + radius, bin, rows)):
                if total(score[k, i, left:right]) == 0:
                    continue
                dy = bin * i - y
                half = math.sqrt(max(radius**2 - dy**2, 0.0))
                first, last = bins_between(x - half, x + half, bin, columns)
                mass += total(score[k, i, first:last])
                vertical = math.exp(-(dy**2) / tolerance[n, k])
                weighted += vertical * dot(score[k, i, first:last], across[first:last])
            if mass > 0:
                found[n, k] = weighted / mass
    return found


def soft_nms(poses: Poses, *, nms_radius: float) -> Poses:
    """Equation 4: a pose's score is the sum of its keypoint scores that no better pose claims, over K.

    A better pose claims a keypoint if it has the same keypoint within `nms_radius` pixels. Returns the poses,
    best first.
    """
    poses = poses.select(best_first(poses.scores))
    unclaimed = torch.from_numpy(~_claimed(array(poses.keypoints), nms_radius**2))
    scores = (poses.keypoint_scores * unclaimed).sum(1) / unclaimed.shape[1]
    poses = replace(poses, unclaimed=unclaimed, scores=scores)
    return poses.select(best_first(scores))


@compiled
def _claimed(keypoints: Array, squared_radius: float) -> npt.NDArray[np.bool_]:
    """Which keypoints of each pose lie within the radius of the same keypoint of an earlier one: N x K."""
    found = np.empty(keypoints.shape[:2], np.bool_)
    for n in range(keypoints.shape[0]):
        for k in range(keypoints.shape[1]):
            found[n, k] = is_claimed(keypoints[:n, k], keypoints[n, k], squared_radius)
    return found


def hard_nms(poses: Poses, *, kappas: Sequence[float]) -> Poses:
    """Drop every pose whose OKS with a better, kept pose is above 0.5; the others, best first."""
    poses = poses.select(best_first(poses.scores))
    squared = (poses.keypoints[:, None] - poses.keypoints[None]).square().sum(-1)  # N x N x K
    tolerance = 2 * (poses.extent()[:, None] * squared.new_tensor(kappas)).square()  # the better one's: N x K
    similar = torch.exp(-squared / tolerance[:, None]).mean(-1) > HARD_NMS_OKS  # [better, worse]
    dropped = torch.zeros(len(similar), dtype=torch.bool)
    for better in range(len(similar)):
        if not dropped[better]:
            dropped[better + 1 :] |= similar[better, better + 1 :]
    return poses.select((~dropped).nonzero()[:, 0])


def score_by_person(poses: Poses, person: Tensor, distance: Tensor) -> Poses:
    """The poses with scores of pose and mask, N:

        sum_k u_jk s_jk^2 / sum_k s_jk  *  S^0.1  *  max(0.01, min(1, p / 0.92)^4)  *  max(0.01, 1 - d)

    S is the score so far, of equation 4; it ranks fragments, whose few keypoints may be certain, below whole
    people. person: p, the mean p_S of the person's cells, N. distance: d, their mean embedding distance in
    units of the threshold, N.
    """
    pose = (poses.unclaimed * poses.keypoint_scores.square()).sum(1)
    pose = pose / poses.keypoint_scores.sum(1).clamp(min=1e-9) * poses.scores**0.1
    certainty, closeness = (person / CERTAIN).clamp(max=1) ** 4, 1 - distance
    return replace(poses, scores=pose * certainty.clamp(min=LEAST) * closeness.clamp(min=LEAST))


def best_first(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True)
