"""Voting, grouping, scoring and masks on the CPU: what `vectorised` does, as compiled loops.

Vectorised code must look at every bin, trace every seed, weigh every bin of every disk and interpolate every
pixel. Loops look at the bins that votes have reached, trace the seeds that nobody has claimed yet, skip the
rows of disks that are empty and interpolate only along the rims of masks, on one core. Results are the same
to rounding; `vectorised.Steps` says what each function does.

The first call on a machine compiles (about ten seconds), and what was compiled is kept beside this file.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from personlab.codec.fields import Fields
from personlab.codec.group import SCORE_DECIMALS, UNSURE, Seeds
from personlab.codec.hough import FAINTEST_VOTE, HoughMap
from personlab.codec.masks import PERSON
from personlab.codec.pyramid import Frame, Level, shares
from personlab.codec.score import extent
from personlab.codec.vectorised import Grouped
from personlab.skeleton import EDGES, KAPPAS, K, walk

_EDGES = np.array(EDGES)
_WALKS = np.array([walk(k) for k in range(K)])

Array = npt.NDArray[np.floating]
Index = npt.NDArray[np.int64]
Cell = tuple[int, int, int, int, float, float]  # top, bottom, left, right; shares of the right and the bottom


def is_finite(tensor: Tensor) -> bool:
    array = _array(tensor)
    return bool(np.isfinite(array.max()) and np.isfinite(array.min()))  # both keep NaN


def vote(
    levels: Sequence[Level], frame: Frame, *, radius: float, bin: float, threshold: float
) -> tuple[HoughMap, Seeds]:
    rows, columns = (math.ceil((side - 1) / bin) + 1 for side in (frame.height, frame.width))
    score = np.zeros((K, rows, columns), _array(levels[0].fields.heatmap).dtype)
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
    expected = _expected_oks(_array(hough.score), hough.bin, _array(keypoints), _array(tolerance), radius)
    return present * torch.from_numpy(expected)


def claimed(keypoints: Tensor, *, radius: float) -> Tensor:
    return torch.from_numpy(_claimed(_array(keypoints), radius**2))


def embedding_distance(fields: Fields, keypoints: Tensor, present: Tensor, lambdas: Tensor) -> Tensor:
    weight = present / present.sum(1, keepdim=True).clamp(min=1e-6) / lambdas[:, None]
    seg, long = _array(fields.seg[0]), _array(fields.long[0])
    return torch.from_numpy(
        _embedding_distance(seg, long, _array(keypoints), _array(weight), fields.stride, PERSON)
    )


def full_resolution(
    seg: Tensor, distance: Tensor, *, step: float, height: int, width: int, threshold: float
) -> Iterator[Tensor]:
    for away in distance:
        yield torch.from_numpy(_mask(_array(seg), _array(away), step, height, width, threshold, PERSON))


def _arrays(level: Level) -> tuple[Array, Array, Array]:
    """Heatmap, short- and mid-range offsets of the one image of this level."""
    fields = level.fields
    return _array(fields.heatmap[0]), _array(fields.short[0]), _array(fields.mid[0])


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().contiguous().numpy()
    return array


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
                    cell = _cell(x / stride, y / stride, *heatmap.shape[1:])
                    present[count, k] += _sample(heatmap[k], cell) / len(views)
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
        cell = _cell(x * ratio / stride, y * ratio / stride, *heatmap.shape[1:])
        weight = share * (_sample(heatmap[kind], cell) + UNSURE)
        total += weight
        across += weight * _sample(field[0], cell) / ratio
        down += weight * _sample(field[1], cell) / ratio
    return across / total, down / total


@njit(cache=True)  # type: ignore[untyped-decorator]
def _cell(x: float, y: float, height: int, width: int) -> Cell:
    """Where a place (in cells) lies among the four cells around it; beyond the map, on its border."""
    x = min(max(0.0, x), width - 1.0)
    y = min(max(0.0, y), height - 1.0)
    left, top = int(x), int(y)
    return top, min(top + 1, height - 1), left, min(left + 1, width - 1), x - left, y - top


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sample(field: Array, cell: Cell) -> float:
    """The field (H x W), interpolated bilinearly."""
    top, bottom, left, right, across, down = cell
    upper = field[top, left] + across * (field[top, right] - field[top, left])
    lower = field[bottom, left] + across * (field[bottom, right] - field[bottom, left])
    return float(upper + down * (lower - upper))


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


@njit(cache=True)  # type: ignore[untyped-decorator]
def _embedding_distance(
    seg: Array, long: Array, keypoints: Array, weight: Array, stride: int, person: float
) -> Array:
    """Equation 6 at every cell for every person, N x H x W; `weight` is presence over its sum and lambda."""
    people, (height, width) = len(keypoints), seg.shape
    distance = np.full((people, height, width), np.inf, seg.dtype)
    for n in range(people):
        if weight[n].sum() == 0:
            continue  # nothing is there to belong to
        for row in range(height):
            for column in range(width):
                if seg[row, column] < person:
                    continue
                away = 0.0
                for k in range(K):
                    x = column * stride + long[k, 0, row, column] - keypoints[n, k, 0]
                    y = row * stride + long[k, 1, row, column] - keypoints[n, k, 1]
                    away += weight[n, k] * math.sqrt(x * x + y * y)
                distance[n, row, column] = away
    return distance


@njit(cache=True)  # type: ignore[untyped-decorator]
def _mask(
    seg: Array, away: Array, step: float, height: int, width: int, threshold: float, person: float
) -> npt.NDArray[np.bool_]:
    """One person's mask over the image. Where all four cells around a pixel agree, it is not interpolated."""
    rows, columns = seg.shape
    mask = np.zeros((height, width), np.bool_)
    near = away <= threshold  # only person cells are: others are infinitely far
    lefts = np.minimum((np.arange(width) * step).astype(np.int64), columns - 1)
    firsts = np.searchsorted(lefts, np.arange(columns + 1))  # the pixels between cells j and j + 1
    for y in range(height):
        v = min(y * step, rows - 1.0)
        top = int(v)
        bottom, below = min(top + 1, rows - 1), v - top
        for left in range(columns):
            right = min(left + 1, columns - 1)
            count = near[top, left] + near[top, right] + near[bottom, left] + near[bottom, right]
            if count == 4:
                mask[y, firsts[left] : firsts[left + 1]] = True
            elif count > 0:
                for x in range(firsts[left], firsts[left + 1]):
                    beside = min(x * step, columns - 1.0) - left
                    held = p = reached = 0.0
                    for i, vertical in ((top, 1 - below), (bottom, below)):
                        for j, horizontal in ((left, 1 - beside), (right, beside)):
                            share = vertical * horizontal
                            p += share * seg[i, j]
                            if seg[i, j] >= person:
                                held += share
                                reached += share * min(away[i, j], 2 * threshold)
                    mask[y, x] = held > 0 and p >= person and reached <= threshold * held
    return mask
