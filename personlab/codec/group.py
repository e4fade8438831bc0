"""From score maps to person poses (paper, "Fast greedy decoding").

All local maxima of all keypoint types seed a pose, best first. A pose depends only on its seed, so all
seeds are traced along the tree at once and then accepted in order: the same result as tracing them one by
one, without the inner loop. No keypoint type is preferred and nothing snaps to other maxima.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from personlab.codec.fields import Fields
from personlab.codec.hough import HoughMap
from personlab.skeleton import EDGES, K, walk


@dataclass(frozen=True)
class Seeds:
    """Candidate keypoints of one image, best first."""

    xy: Tensor  # N x 2, pixels
    kind: Tensor  # N, keypoint index
    score: Tensor  # N

    def scaled(self, factor: float) -> Self:
        return type(self)(self.xy * factor, self.kind, self.score)


def find_seeds(hough: HoughMap, *, threshold: float) -> Seeds:
    """Local maxima of the score maps above `threshold`, placed at the centroid of their 3 x 3 bins.

    Of equal neighbours the first in reading order is the maximum.
    """
    padded = F.pad(hough.score, (1, 1, 1, 1))
    kind, row, column = torch.nonzero(hough.score > threshold, as_tuple=True)
    down = torch.arange(3, device=kind.device)
    window = padded[
        kind[:, None, None], row[:, None, None] + down[:, None], column[:, None, None] + down
    ]  # N x 3 x 3
    flat = window.flatten(1)
    centre = flat[:, 4:5]
    peak = (centre > flat[:, :4]).all(1) & (centre >= flat[:, 5:]).all(1)
    kind, row, column, window = kind[peak], row[peak], column[peak], window[peak]

    mass = window.sum((1, 2))
    dx = (window[:, :, 2] - window[:, :, 0]).sum(1) / mass
    dy = (window[:, 2, :] - window[:, 0, :]).sum(1) / mass
    score, order = window[:, 1, 1].sort(descending=True, stable=True)
    xy = torch.stack((column + dx, row + dy), -1) * hough.bin
    return Seeds(xy=xy[order], kind=kind[order], score=score)


def trace(fields: Fields, seeds: Seeds, *, mid_steps: int) -> Tensor:
    """Follow the mid-range offsets from every seed along the whole tree: N x K x 2 keypoints, in pixels.

    Each step is equation 2 at one place: y_l = y_k + M_kl(y_k), then `mid_steps` times
    y_l = y_l + S_l(y_l).
    """
    mid, short = _Sampler(fields.mid[0], fields.stride), _Sampler(fields.short[0], fields.stride)
    keypoints = seeds.xy.new_zeros(len(seeds.xy), K, 2)
    person = torch.arange(len(seeds.xy), device=seeds.xy.device)
    keypoints[person, seeds.kind] = seeds.xy
    walks = _WALKS.to(seeds.kind.device)[seeds.kind]  # N x 16 edges
    edges = _EDGES.to(seeds.kind.device)
    for step in range(K - 1):
        edge = walks[:, step]
        source, target = edges[edge].unbind(1)
        start = keypoints[person, source]
        end = start + mid(edge, start)
        for _ in range(mid_steps):
            end = end + short(target, end)
        keypoints[person, target] = end
    return keypoints


def accept(seeds: Seeds, keypoints: Tensor, *, nms_radius: float, most: int) -> Tensor:
    """Indices of the seeds that start a person of their own, best first, at most `most`.

    A seed is rejected if the same keypoint of an accepted person lies within `nms_radius` pixels.
    """
    remaining = torch.arange(len(seeds.xy), device=seeds.xy.device)
    accepted = list[Tensor]()
    while len(remaining) and len(accepted) < most:
        best, remaining = remaining[0], remaining[1:]
        accepted.append(best)
        claimed = keypoints[best][seeds.kind[remaining]]
        far = (seeds.xy[remaining] - claimed).square().sum(-1) > nms_radius**2
        remaining = remaining[far]
    return torch.stack(accepted) if accepted else remaining


class _Sampler:
    """Bilinear samples of single channels of C x 2 x H x W offsets at points, clamped to the border."""

    def __init__(self, offsets: Tensor, stride: int) -> None:
        self.offsets = offsets.permute(0, 2, 3, 1)  # C x H x W x 2
        self.stride = stride

    def __call__(self, channel: Tensor, xy: Tensor) -> Tensor:
        height, width = self.offsets.shape[1:3]
        x = (xy[:, 0] / self.stride).clamp(0, width - 1)
        y = (xy[:, 1] / self.stride).clamp(0, height - 1)
        left, top = x.long().clamp(max=max(width - 2, 0)), y.long().clamp(max=max(height - 2, 0))
        right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
        across, down = (x - left)[:, None], (y - top)[:, None]
        at = self.offsets
        upper = torch.lerp(at[channel, top, left], at[channel, top, right], across)
        lower = torch.lerp(at[channel, bottom, left], at[channel, bottom, right], across)
        return torch.lerp(upper, lower, down)


_EDGES = torch.tensor(EDGES)
_WALKS = torch.tensor([walk(k) for k in range(K)])
