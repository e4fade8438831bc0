"""Scores of keypoints and poses (paper, equations 3 and 4), and non-maximum suppression of poses."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from personlab.codec.fields import Fields
from personlab.codec.hough import HoughMap
from personlab.skeleton import KAPPAS, K

# A keypoint counts as detected, and so into a person's extent, where its presence is at least this.
DETECTED = 0.5

# Hard NMS removes a pose whose OKS with a better one is above this (G-RMI).
HARD_NMS_OKS = 0.5


@dataclass(frozen=True)
class Poses:
    """People detected in one image, best first."""

    keypoints: Tensor  # N x K x 2, pixels
    presence: Tensor  # N x K, p_k(y_jk)
    keypoint_scores: Tensor  # N x K
    scores: Tensor  # N

    def select(self, index: Tensor | slice) -> Self:
        return type(self)(
            self.keypoints[index], self.presence[index], self.keypoint_scores[index], self.scores[index]
        )

    def scaled(self, factor: float) -> Self:
        """The same poses in an image `factor` times the size."""
        return type(self)(self.keypoints * factor, self.presence, self.keypoint_scores, self.scores)

    def extent(self) -> Tensor:
        """lambda_j of every pose, in pixels: N."""
        return extent(self.keypoints, self.presence)


def presence(fields: Fields, keypoints: Tensor, *, height: float, width: float) -> Tensor:
    """p_k(y_jk): heatmaps sampled at N x K x 2 keypoints -> N x K; zero where x > width or y > height.

    Half a pixel more still counts: a keypoint on the border is traced to one side of it or the other.
    """
    grid_height, grid_width = fields.heatmap.shape[-2:]
    scale = keypoints.new_tensor(
        [2 / (fields.stride * max(grid_width - 1, 1)), 2 / (fields.stride * max(grid_height - 1, 1))]
    )
    grid = (keypoints * scale - 1).transpose(0, 1)[:, :, None]  # K x N x 1 x 2
    sampled = F.grid_sample(fields.heatmap[0][:, None], grid, padding_mode="border", align_corners=True)
    x, y = keypoints.unbind(-1)
    inside = (x >= -0.5) & (y >= -0.5) & (x <= width + 0.5) & (y <= height + 0.5)
    return sampled[:, 0, :, 0].T * inside


def extent(keypoints: Tensor, present: Tensor) -> Tensor:
    """lambda_j: the square root of the area of the box around the *detected* keypoints of each pose, N.

    keypoints N x K x 2 in pixels, present N x K. A pose with fewer than two detected keypoints has no box
    of its own; it is measured by all its keypoints.
    """
    detected = present >= DETECTED
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


def expected_oks(hough: HoughMap, keypoints: Tensor, present: Tensor, *, radius: float) -> Tensor:
    """Equation 3: p_k(y) times the mean of exp(-|x - y|^2 / (2 lambda^2 kappa_k^2)) over the disk around y,
    weighted by the score map: N x K. Where the disk holds no votes, the score is 0."""
    reach = math.ceil(radius / hough.bin)
    steps = torch.arange(-reach, reach + 1, device=keypoints.device)
    centre = (keypoints / hough.bin).round().long()  # N x K x 2
    rows, columns = hough.score.shape[-2:]
    column = centre[..., 0, None] + steps  # N x K x S
    row = centre[..., 1, None] + steps
    inside_x, inside_y = (column >= 0) & (column < columns), (row >= 0) & (row < rows)
    kinds = torch.arange(K, device=keypoints.device)[:, None, None]
    window = hough.score[
        kinds, row.clamp(0, rows - 1)[..., :, None], column.clamp(0, columns - 1)[..., None, :]
    ]  # N x K x S x S
    dx2 = (column * hough.bin - keypoints[..., 0, None]).square()
    dy2 = (row * hough.bin - keypoints[..., 1, None]).square()
    squared = dy2[..., :, None] + dx2[..., None, :]
    within = (squared <= radius**2) & inside_y[..., :, None] & inside_x[..., None, :]
    weight = window * within
    kappas = keypoints.new_tensor(KAPPAS)
    tolerance = 2 * (extent(keypoints, present)[:, None] * kappas).square()  # N x K
    oks = torch.exp(-squared / tolerance[..., None, None])
    mass = weight.sum((-1, -2))
    return present * (weight * oks).sum((-1, -2)) / mass.clamp(min=1e-12)


def claimed(keypoints: Tensor, *, radius: float) -> Tensor:
    """Which keypoints of poses, best first (N x K x 2), a better pose has within `radius` pixels: N x K."""
    x, y = keypoints.unbind(-1)
    squared = (x[:, None] - x).square_().add_((y[:, None] - y).square_())  # N x N x K
    better = torch.ones(squared.shape[:2], device=squared.device, dtype=torch.bool).tril(-1)
    return ((squared <= radius**2) & better[..., None]).any(1)


def soft_nms(poses: Poses, *, nms_radius: float, claimed: Callable[..., Tensor] = claimed) -> Poses:
    """Equation 4: a pose's score is the sum of those keypoint scores that no better pose has claimed, over K.

    A keypoint is claimed if the same keypoint of a better pose is within `nms_radius` pixels. Returns the
    poses, best first.
    """
    poses = poses.select(_best_first(poses.scores))
    scores = (poses.keypoint_scores * ~claimed(poses.keypoints, radius=nms_radius)).sum(1) / K
    return replace(poses, scores=scores).select(_best_first(scores))


def hard_nms(poses: Poses) -> Poses:
    """Drop every pose whose OKS with a better, kept pose is above 0.5; the others, best first."""
    poses = poses.select(_best_first(poses.scores))
    squared = (poses.keypoints[:, None] - poses.keypoints[None]).square().sum(-1)  # N x N x K
    tolerance = 2 * (poses.extent()[:, None] * squared.new_tensor(KAPPAS)).square()  # the better one's: N x K
    similar = torch.exp(-squared / tolerance[:, None]).mean(-1) > HARD_NMS_OKS  # [better, worse]
    dropped = torch.zeros(len(similar), dtype=torch.bool, device=similar.device)
    for better in range(len(similar)):
        if not dropped[better]:
            dropped[better + 1 :] |= similar[better, better + 1 :]
    return poses.select((~dropped).nonzero()[:, 0])


def _best_first(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True)
