"""Greedy decoding: seeds become poses (paper, section 3.1, "Fast greedy decoding").

Seeds of all keypoint types are taken best first. One within r pixels of the same keypoint of an accepted
person is rejected; from any other the mid-range offsets are followed along the tree. No keypoint type is
preferred, and positions are not snapped to other maxima.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from personlab.codec.hough import Seeds
from personlab.codec.loops import Array, Index, array, cell_at, compiled, sample
from personlab.codec.pyramid import Frame, Level, View, views
from personlab.skeleton import Skeleton

# Avoids 0/0 where no level is confident.
_EPSILON: Final = 1e-6


def find_people(
    levels: Sequence[Level],
    frame: Frame,
    seeds: Seeds,
    *,
    trace_refinements: int,
    nms_radius: float,
    most: int,
    skeleton: Skeleton,
) -> Tensor:
    """Trace the poses of seeds that no accepted person claims: N x K x 2, frame pixels.

    At most `most`, of the best seeds, in their order.
    """
    xy, kinds = array(seeds.xy), array(seeds.kind)
    edges = np.array(skeleton.edges, np.int64).reshape(-1, 2)
    walks = np.array(skeleton.walks, np.int64)
    poses = _accept(views(levels, frame), edges, walks, xy, kinds, trace_refinements, nms_radius**2, most)
    return torch.from_numpy(poses)


def presence(levels: Sequence[Level], frame: Frame, keypoints: Tensor) -> Tensor:
    """p_k(y_jk), the mean over the levels; 0 outside the image: N x K x 2 frame pixels -> N x K.

    Keypoints up to half a level pixel outside the outermost pixels count as inside: a keypoint on the border
    is traced to one side of it or the other.
    """
    found = _presence(views(levels, frame), array(keypoints), frame.height, frame.width)
    return torch.from_numpy(found)


@compiled
def _accept(
    levels: tuple[View, ...],
    edges: Index,  # E x 2, source and target
    walks: Index,  # K x (K - 1), see `Skeleton.walks`
    seeds: Array,  # N x 2, frame pixels, best first
    kinds: Index,  # N
    refinements: int,
    squared_radius: float,
    most: int,
) -> Array:
    """The poses of the accepted seeds: M x K x 2. A pose is traced only if its seed is accepted."""
    poses = np.empty((min(len(seeds), most), len(walks), 2), seeds.dtype)
    count = 0
    for seed in range(len(seeds)):
        if count == len(poses):
            break
        kind = kinds[seed]
        if not is_claimed(poses[:count, kind], seeds[seed], squared_radius):
            poses[count, kind] = seeds[seed]
            _trace(poses[count], levels, edges, walks[kind], refinements)
            count += 1
    return poses[:count]


@compiled
def is_claimed(places: Array, xy: Array, squared_radius: float) -> bool:
    """Whether a place (2) is within the radius of one of `places` (N x 2)."""
    for place in places:  # noqa: SIM110, numba has no generators here
        if (place[0] - xy[0]) ** 2 + (place[1] - xy[1]) ** 2 <= squared_radius:
            return True
    return False


@compiled
def _trace(pose: Array, levels: tuple[View, ...], edges: Index, walk: Index, refinements: int) -> None:
    """Fill in a pose (K x 2, frame pixels) along the edges of a walk from its seed, by equation 2 at points.

    y_l = y_k + M_kl(y_k), then `refinements` times y_l = y_l + S_l(y_l).
    """
    for edge in walk:
        source, target = edges[edge]
        x, y = pose[source]
        dx, dy = _mean_offset(levels, True, edge, source, x, y)
        x, y = x + dx, y + dy
        for _ in range(refinements):
            dx, dy = _mean_offset(levels, False, target, target, x, y)
            x, y = x + dx, y + dy
        pose[target] = x, y


@compiled
def _mean_offset(
    levels: tuple[View, ...], is_mid: bool, channel: int, kind: int, x: float, y: float
) -> tuple[float, float]:
    """A mid- or short-range offset at a frame position, in frame pixels: the mean over the levels.

    A level counts by its weight and by its probability that keypoint `kind`, where the offset starts, is
    here.
    """
    total = across = down = 0.0
    for level in levels:
        field = level.mid[channel] if is_mid else level.short[channel]
        height, width = level.heatmap.shape[1:]
        cell = cell_at(x * level.ratio / level.stride, y * level.ratio / level.stride, height, width)
        weight = level.weight * (sample(level.heatmap[kind], cell) + _EPSILON)
        total += weight
        across += weight * sample(field[0], cell) / level.ratio
        down += weight * sample(field[1], cell) / level.ratio
    return across / total, down / total


@compiled
def _presence(levels: tuple[View, ...], keypoints: Array, frame_height: float, frame_width: float) -> Array:
    present = np.zeros(keypoints.shape[:2], keypoints.dtype)
    for level in levels:
        bottom, right = (frame_height - 1) * level.ratio + 0.5, (frame_width - 1) * level.ratio + 0.5
        height, width = level.heatmap.shape[1:]
        for n in range(len(keypoints)):
            for k in range(keypoints.shape[1]):
                x, y = keypoints[n, k, 0] * level.ratio, keypoints[n, k, 1] * level.ratio
                if -0.5 <= x <= right and -0.5 <= y <= bottom:
                    cell = cell_at(x / level.stride, y / level.stride, height, width)
                    present[n, k] += sample(level.heatmap[k], cell) / len(levels)
    return present
