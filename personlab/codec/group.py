"""From score maps to person poses (paper, "Fast greedy decoding").

All local maxima of all keypoint types seed a pose, best first. A pose depends only on its seed, so all
seeds are traced along the tree at once and then accepted in order: the same result as tracing them one by
one, without the inner loop. No keypoint type is preferred and nothing snaps to other maxima.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from personlab.codec.hough import HoughMap
from personlab.codec.pyramid import Frame, Level, shares
from personlab.skeleton import EDGES, K, walk

# Votes add up in any order; scores are rounded to what that leaves of them.
SCORE_DECIMALS = 6

# Added to every level's probability when it is a weight: where no level sees the keypoint, all are asked.
UNSURE = 1e-6


@dataclass(frozen=True)
class Seeds:
    """Candidate keypoints of one image, best first."""

    xy: Tensor  # N x 2, pixels
    kind: Tensor  # N, keypoint index
    score: Tensor  # N


def find_seeds(hough: HoughMap, *, threshold: float) -> Seeds:
    """Local maxima of the score maps above `threshold`, placed at the centroid of their 3 x 3 bins.

    A seed's score is what these bins hold together: a bin alone holds all of a keypoint's votes if its centre
    is where they point, and a quarter if that is where four bins meet. Where nothing but rounding decides,
    the first in reading order is the maximum, and comes first.
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
    score, order = mass.round(decimals=SCORE_DECIMALS).sort(descending=True, stable=True)
    xy = torch.stack((column + dx, row + dy), -1) * hough.bin
    return Seeds(xy=xy[order], kind=kind[order], score=score)


def trace(levels: Sequence[Level], frame: Frame, seeds: Seeds, *, mid_steps: int) -> Tensor:
    """Follow the mid-range offsets from every seed along the whole tree: N x K x 2, in pixels of the frame.

    Each step is equation 2 at one place: y_l = y_k + M_kl(y_k), then `mid_steps` times
    y_l = y_l + S_l(y_l). M and S are the mean of what the levels say there, each weighted by its share and by
    how sure it is that there is a keypoint where its offset starts.
    """
    views = [_View(level, frame, share) for level, share in zip(levels, shares(levels), strict=True)]
    keypoints = seeds.xy.new_zeros(len(seeds.xy), K, 2)
    person = torch.arange(len(seeds.xy), device=seeds.xy.device)
    keypoints[person, seeds.kind] = seeds.xy
    walks = _WALKS.to(seeds.kind.device)[seeds.kind]  # N x 16 edges
    edges = _EDGES.to(seeds.kind.device)
    for step in range(K - 1):
        edge = walks[:, step]
        source, target = edges[edge].unbind(1)
        start = keypoints[person, source]
        end = start + _mean_offset([view.mid(edge, source, start) for view in views])
        for _ in range(mid_steps):
            end = end + _mean_offset([view.short(target, end) for view in views])
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


def _mean_offset(said: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean of offsets (N x 2) by their weights (N x 1)."""
    weights = torch.stack([weight for _, weight in said])
    return (torch.stack([offset for offset, _ in said]) * weights).sum(0) / weights.sum(0)


class _View:
    """One level's offsets at places of the frame, in its pixels, and how much they count.

    Fields are sampled bilinearly, clamped to the border.
    """

    def __init__(self, level: Level, frame: Frame, share: float) -> None:
        self._heatmap = level.fields.heatmap[0][..., None]  # K x H x W x 1
        self._short = level.fields.short[0].permute(0, 2, 3, 1)  # K x H x W x 2
        self._mid = level.fields.mid[0].permute(0, 2, 3, 1)  # E x H x W x 2
        self._ratio = level.scale / frame.scale
        self._stride = level.fields.stride
        self._share = share

    def mid(self, edge: Tensor, source: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
        return self._sample(self._mid, edge, xy) / self._ratio, self._weight(source, xy)

    def short(self, kind: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
        return self._sample(self._short, kind, xy) / self._ratio, self._weight(kind, xy)

    def _weight(self, kind: Tensor, xy: Tensor) -> Tensor:
        return self._share * (self._sample(self._heatmap, kind, xy) + UNSURE)

    def _sample(self, field: Tensor, channel: Tensor, xy: Tensor) -> Tensor:
        """N x C at N places, each from a channel of its own. field: channels x H x W x C."""
        height, width = field.shape[1:3]
        x = (xy[:, 0] * self._ratio / self._stride).clamp(0, width - 1)
        y = (xy[:, 1] * self._ratio / self._stride).clamp(0, height - 1)
        left, top = x.long().clamp(max=max(width - 2, 0)), y.long().clamp(max=max(height - 2, 0))
        right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
        across, down = (x - left)[:, None], (y - top)[:, None]
        upper = torch.lerp(field[channel, top, left], field[channel, top, right], across)
        lower = torch.lerp(field[channel, bottom, left], field[channel, bottom, right], across)
        return torch.lerp(upper, lower, down)


_EDGES = torch.tensor(EDGES)
_WALKS = torch.tensor([walk(k) for k in range(K)])
