"""Voting, grouping and scoring as loops; `vectorised.Steps` says what each function does."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from personlab.codec.compiled.arrays import Array, Index, array, cell_at, sample
from personlab.codec.group import SCORE_DECIMALS, UNSURE, Seeds
from personlab.codec.hough import FAINTEST_VOTE, HoughMap
from personlab.codec.pyramid import Frame, Level, shares
from personlab.codec.score import extent
from personlab.codec.vectorised import Grouped
from personlab.skeleton import EDGES, KAPPAS, K, walk

_EDGES = np.array(EDGES)
_WALKS = np.array([walk(k) for k in range(K)])


def is_finite(tensor: Tensor) -> bool:
    values = array(tensor)
    return bool(np.isfinite(values.max()) and np.isfinite(values.min()))  # both keep NaN


def vote(
    levels: Sequence[Level], frame: Frame, *, radius: float, bin: float, threshold: float
) -> tuple[HoughMap, Seeds]:
    rows, columns = (math.ceil((side - 1) / bin) + 1 for side in (frame.height, frame.width))
    score = np.zeros((K, rows, columns), array(levels[0].fields.heatmap).dtype)
    reached = []
    for level, share in zip(levels, shares(levels), strict=True):
        heatmap, short, stride = *_arrays(level)[:2], level.fields.stride
        area = stride**2 / (math.pi * radius**2)
        to_bins = frame.scale / level.scale / bin
        reached.append(_vote(score, heatmap, short, stride, to_bins, area * share, FAINTEST_VOTE, threshold))
    xy, at, mass = _seeds(score, np.concatenate(reached))
    mass = mass.round(SCORE_DECIMALS)
    order = np.lexsort((at, -mass))  # best first, equals in reading order
    found = (xy * score.dtype.type(bin), at // (rows * columns), mass)
    seeds = Seeds(*(torch.from_numpy(column[order]) for column in found))
    return HoughMap(torch.from_numpy(score), bin), seeds


def find_people(
    levels: Sequence[Level],
    frame: Frame,
    seeds: Seeds,
    *,
    mid_steps: int,
    nms_radius: float,
    most: int,
) -> Grouped:
    views = tuple(
        (*_arrays(level), float(level.fields.stride), level.scale / frame.scale, share)
        for level, share in zip(levels, shares(levels), strict=True)
    )
    xy, kinds = seeds.xy.numpy(), seeds.kind.numpy()
    found = _people(views, frame.height, frame.width, xy, kinds, mid_steps, nms_radius**2, most)
    return Grouped(*map(torch.from_numpy, found))


def expected_oks(hough: HoughMap, keypoints: Tensor, present: Tensor, *, radius: float) -> Tensor:
    tolerance = 2 * (extent(keypoints, present)[:, None] * keypoints.new_tensor(KAPPAS)).square()
    expected = _expected_oks(array(hough.score), hough.bin, array(keypoints), array(tolerance), radius)
    return present * torch.from_numpy(expected)


def claimed(keypoints: Tensor, *, radius: float) -> Tensor:
    return torch.from_numpy(_claimed(array(keypoints), radius**2))


def _arrays(level: Level) -> tuple[Array, Array, Array]:
    """Heatmap, short- and mid-range offsets of the one image of this level."""
    fields = level.fields
    return array(fields.heatmap[0]), array(fields.short[0]), array(fields.mid[0])


@njit(cache=True)  # type: ignore[untyped-decorator]
def _vote(
    score: Array,
    heatmap: Array,
    short: Array,
    stride: int,
    to_bins: float,
    share: float,
    faintest: float,
    threshold: float,
) -> Index:
    """Cast the votes of one level; the bins (flat indices) that they lift above the threshold.

    Votes only add, so a bin crosses the threshold once, and nobody need search all bins for those above.
    """
    kinds, height, width = heatmap.shape
    rows, columns = score.shape[1:]
    flat = score.reshape(-1)
    reached = np.empty(len(flat) + 1, np.int64)  # room that is never touched takes no memory
    count = 0
    for k in range(kinds):
        for row in range(height):
            for column in range(width):
                p = heatmap[k, row, column]
                if p <= faintest:
                    continue
                x = (column * stride + short[k, 0, row, column]) * to_bins
                y = (row * stride + short[k, 1, row, column]) * to_bins
                if not (-1 < x < columns and -1 < y < rows):
                    continue
                left, top = math.floor(x), math.floor(y)
                across, down = x - left, y - top
                corner = (k * rows + top) * columns + left
                for below in range(2):
                    for beside in range(2):
                        if 0 <= top + below < rows and 0 <= left + beside < columns:
                            weight = (across if beside else 1 - across) * (down if below else 1 - down)
                            at = corner + below * columns + beside
                            before = flat[at]
                            after = before + p * share * weight
                            flat[at] = after
                            reached[count] = at  # kept only if it counts: a branch would be guessed wrong
                            count += (before <= threshold) & (after > threshold)
    return reached[:count].copy()


@njit(cache=True)  # type: ignore[untyped-decorator]
def _seeds(score: Array, bins: Index) -> tuple[Array, Index, Array]:
    """Which of the bins (flat indices) are local maxima: centroid (N x 2, bins), flat index, mass."""
    _, rows, columns = score.shape
    xy, peaks = np.empty((len(bins), 2), score.dtype), np.empty(len(bins), np.int64)
    masses = np.empty(len(bins), score.dtype)
    count = 0
    for at in bins:
        line, column = divmod(at, columns)
        k, row = divmod(line, rows)
        if not _is_peak(score[k], row, column):
            continue
        mass = dx = dy = 0.0
        for i in range(max(row - 1, 0), min(row + 2, rows)):
            for j in range(max(column - 1, 0), min(column + 2, columns)):
                mass += score[k, i, j]
                dx += score[k, i, j] * (j - column)
                dy += score[k, i, j] * (i - row)
        xy[count, 0], xy[count, 1] = column + dx / mass, row + dy / mass
        peaks[count], masses[count] = at, mass
        count += 1
    return xy[:count], peaks[:count], masses[:count]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _is_peak(score: Array, row: int, column: int) -> bool:
    """Of equal neighbours the first in reading order is the maximum."""
    rows, columns = score.shape
    centre = score[row, column]
    for i in range(max(row - 1, 0), min(row + 2, rows)):
        for j in range(max(column - 1, 0), min(column + 2, columns)):
            is_before = i < row or (i == row and j < column)
            if score[i, j] > centre or (is_before and score[i, j] == centre):
                return False
    return True


@njit(cache=True)  # type: ignore[untyped-decorator]
def _people(views, frame_height, frame_width, seeds, kinds, mid_steps, squared_radius, most):  # type: ignore[no-untyped-def]
    """Pop seeds best first; what nobody has claimed is traced.

    A view is one level: its arrays as from `_arrays`, its stride, its pixels per frame pixel and its share.
    """
    room = min(len(seeds), most)
    keypoints = np.empty((room, K, 2), seeds.dtype)
    present = np.zeros((room, K), seeds.dtype)
    count = 0
    for seed in range(len(seeds)):
        if count == room:
            break
        kind = kinds[seed]
        if _is_claimed(keypoints[:count, kind], seeds[seed], squared_radius):
            continue
        keypoints[count, kind] = seeds[seed]
        _trace(keypoints[count], kind, views, mid_steps)
        for heatmap, _, _, stride, ratio, _ in views:
            bottom, right = (frame_height - 1) * ratio + 0.5, (frame_width - 1) * ratio + 0.5
            for k in range(K):
                x, y = keypoints[count, k, 0] * ratio, keypoints[count, k, 1] * ratio
                if -0.5 <= x <= right and -0.5 <= y <= bottom:
                    cell = cell_at(x / stride, y / stride, *heatmap.shape[1:])
                    present[count, k] += sample(heatmap[k], cell) / len(views)
        count += 1
    return keypoints[:count], present[:count]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _claimed(keypoints: Array, squared_radius: float) -> npt.NDArray[np.bool_]:
    """Which keypoints of each pose lie within the radius of the same keypoint of an earlier one: N x K."""
    found = np.empty(keypoints.shape[:2], np.bool_)
    for n in range(len(keypoints)):
        for k in range(K):
            found[n, k] = _is_claimed(keypoints[:n, k], keypoints[n, k], squared_radius)
    return found


@njit(cache=True)  # type: ignore[untyped-decorator]
def _is_claimed(places: Array, xy: Array, squared_radius: float) -> bool:
    for place in places:  # noqa: SIM110, numba knows no generators here
        if (place[0] - xy[0]) ** 2 + (place[1] - xy[1]) ** 2 <= squared_radius:
            return True
    return False


@njit(cache=True)  # type: ignore[untyped-decorator]
def _trace(pose, kind, views, mid_steps):  # type: ignore[no-untyped-def]
    """Fill in the pose (K x 2, frame pixels) from keypoint `kind` along the tree, by equation 2."""
    for edge in _WALKS[kind]:
        source, target = _EDGES[edge]
        x, y = pose[source]
        dx, dy = _mean_offset(views, True, edge, source, x, y)
        x, y = x + dx, y + dy
        for _ in range(mid_steps):
            dx, dy = _mean_offset(views, False, target, target, x, y)
            x, y = x + dx, y + dy
        pose[target] = x, y


@njit(cache=True)  # type: ignore[untyped-decorator]
def _mean_offset(views, is_mid, channel, kind, x, y):  # type: ignore[no-untyped-def]
    """What the levels say at a place of the frame, by their shares and how sure they are of the keypoint."""
    total = across = down = 0.0
    for heatmap, short, mid, stride, ratio, share in views:
        field = mid[channel] if is_mid else short[channel]
        cell = cell_at(x * ratio / stride, y * ratio / stride, *heatmap.shape[1:])
        weight = share * (sample(heatmap[kind], cell) + UNSURE)
        total += weight
        across += weight * sample(field[0], cell) / ratio
        down += weight * sample(field[1], cell) / ratio
    return across / total, down / total


@njit(cache=True)  # type: ignore[untyped-decorator]
def _expected_oks(score: Array, bin: float, keypoints: Array, tolerance: Array, radius: float) -> Array:
    """The mean of exp(-|x - y|^2 / tolerance) over the disk around y, weighted by the score map: N x K."""
    expected = np.zeros(tolerance.shape, score.dtype)
    rows, columns = score.shape[1:]
    for k in range(K):  # one map after the other: memory is what this waits for
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
    """The sum in any order, so that many are added at a time."""
    total = row.dtype.type(0)
    for value in row:
        total += value
    return float(total)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _bins_between(low: float, high: float, bin: float, bins: int) -> tuple[int, int]:
    """The bins, first and one past the last, whose centres lie from `low` to `high` pixels."""
    first = min(max(0.0, math.ceil(low / bin)), float(bins))
    last = min(max(-1.0, math.floor(high / bin)), bins - 1.0)
    return int(first), int(last) + 1
