"""Instance masks: which person pixels belong to which detected person (paper, section 3.2, equation 6)."""

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from personlab.codec.fields import Fields
from personlab.codec.loops import Array, Index, array, compiled

Mask = npt.NDArray[np.bool_]
Cells = tuple[Index, ...]  # rows and columns

# A pixel shows a person where p_S is at least this.
PERSON: Final = 0.5


def refine_long(fields: Fields, steps: int) -> Fields:
    """Equation 5 at person cells, as `refine.refine` computes it everywhere; other cells are undefined."""
    seg, long, short = (array(field[0]) for field in (fields.seg, fields.long, fields.short))
    refined = _refine_long(np.nonzero(seg >= PERSON), long, short, steps, fields.stride)
    return fields.replace(long=torch.from_numpy(refined)[None])


@compiled
def _refine_long(people: Cells, long: Array, short: Array, steps: int, stride: int) -> Array:
    """At the cells `people`, `steps` times L_k(x) <- x' + L_k(x'), then `steps` times L_k(x) <- x' + S_k(x').

    The first kind samples its own field: before its last step, the cells around x' are needed too, and before
    that all cells.
    """
    kinds, _, height, width = long.shape
    everywhere = np.nonzero(np.ones((height, width), np.bool_))
    refined = np.zeros_like(long)
    for k in range(kinds):
        offsets = long[k]
        for left in range(steps, 0, -1):
            further = np.empty_like(offsets)
            _follow(further, everywhere if left > 2 else people, offsets, offsets, 1, stride)
            if left == 2:
                _follow(further, _ends(people, further, stride), offsets, offsets, 1, stride)
            offsets = further
        _follow(refined[k], people, offsets, short[k], steps, stride)
    return refined


@compiled
def _follow(further: Array, at: Cells, offsets: Array, field: Array, steps: int, stride: int) -> None:
    """Fill in, at some cells, the offsets (2 x H x W) plus, `steps` times, the field where they end.

    Masks spend most of their time here: this is `loops.sample` for both coordinates at once.
    """
    _, height, width = offsets.shape
    flat_x, flat_y = field[0].reshape(-1), field[1].reshape(-1)
    per_pixel, zero = field.dtype.type(1 / stride), field.dtype.type(0)
    last_column, last_row = field.dtype.type(width - 1), field.dtype.type(height - 1)
    beside, below = min(width - 1, 1), min(height - 1, 1) * width  # in a map of one cell, itself
    for row, column in zip(at[0], at[1]):  # noqa: B905, numba knows no `strict`
        dx, dy = offsets[0, row, column], offsets[1, row, column]
        for _ in range(steps):
            x = min(max(zero, field.dtype.type(column) + dx * per_pixel), last_column)
            y = min(max(zero, field.dtype.type(row) + dy * per_pixel), last_row)
            left, top = min(int(x), max(width - 2, 0)), min(int(y), max(height - 2, 0))
            across, down = x - field.dtype.type(left), y - field.dtype.type(top)
            upper = top * width + left
            lower = upper + below
            for_x = flat_x[upper] + across * (flat_x[upper + beside] - flat_x[upper])
            for_y = flat_y[upper] + across * (flat_y[upper + beside] - flat_y[upper])
            dx += for_x + down * (flat_x[lower] + across * (flat_x[lower + beside] - flat_x[lower]) - for_x)
            dy += for_y + down * (flat_y[lower] + across * (flat_y[lower + beside] - flat_y[lower]) - for_y)
        further[0, row, column], further[1, row, column] = dx, dy


@compiled
def _ends(at: Cells, offsets: Array, stride: int) -> Cells:
    """The cells that `_follow` reads at the ends of the offsets (2 x H x W) of some cells, without these.

    Found with its very arithmetic: it weighs some of them by 0, but what is undefined may be infinite.
    """
    _, height, width = offsets.shape
    around = np.zeros((height, width), np.bool_)
    number = offsets.dtype.type
    per_pixel, last_column, last_row = number(1 / stride), number(width - 1), number(height - 1)
    for row, column in zip(at[0], at[1]):  # noqa: B905
        x = min(max(number(0), number(column) + offsets[0, row, column] * per_pixel), last_column)
        y = min(max(number(0), number(row) + offsets[1, row, column] * per_pixel), last_row)
        left, top = min(int(x), max(width - 2, 0)), min(int(y), max(height - 2, 0))
        right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
        around[top, left] = around[top, right] = around[bottom, left] = around[bottom, right] = True
    for row, column in zip(at[0], at[1]):  # noqa: B905
        around[row, column] = False
    return np.nonzero(around)


def embedding_distance(fields: Fields, keypoints: Tensor, presence: Tensor, lambdas: Tensor) -> Tensor:
    """Equation 6: the distance of every cell's embedding from every person, relative to the person's size.

        D_j(x) = sum_k p_k(y_jk) |G_k(x) - y_jk| / (lambda_j sum_k p_k(y_jk)),  G_k(x) = x + L_k(x)

    fields: one image, long-range offsets refined; keypoints N x K x 2 in input pixels; presence N x K;
    lambdas N, input pixels. Returns N x H x W; infinite at cells that show no person, and for a pose without
    any present keypoint.
    """
    weight = presence / presence.sum(1, keepdim=True).clamp(min=1e-6) / lambdas[:, None]
    seg, long = array(fields.seg[0]), array(fields.long[0])
    distance = np.full((len(keypoints), seg.size), np.inf, seg.dtype)
    at = np.flatnonzero(seg >= PERSON)
    _embedding_distance(distance, at, long, array(keypoints), array(weight), fields.stride)
    return torch.from_numpy(distance.reshape(-1, *seg.shape))


@compiled
def _embedding_distance(
    distance: Array, at: Index, long: Array, keypoints: Array, weight: Array, stride: int
) -> None:
    """Fill in the distance (N x H W) of the cells `at`; `weight` (N x K) is presence / its sum / lambda."""
    kinds, _, _, width = long.shape
    x, y = np.empty((kinds, len(at)), long.dtype), np.empty((kinds, len(at)), long.dtype)
    for k in range(kinds):
        for cell, place in enumerate(at):
            row, column = divmod(place, width)
            x[k, cell] = column * stride + long[k, 0, row, column]
            y[k, cell] = row * stride + long[k, 1, row, column]
    for n in range(len(keypoints)):
        if weight[n].sum() > 0:
            total = np.zeros(len(at), long.dtype)
            for k in range(kinds):
                _add_distance(total, x[k], y[k], keypoints[n, k], weight[n, k])
            distance[n][at] = total


@compiled
def _add_distance(total: Array, x: Array, y: Array, place: Array, weight: float) -> None:
    for cell in range(len(total)):
        dx, dy = x[cell] - place[0], y[cell] - place[1]
        total[cell] += weight * np.sqrt(dx * dx + dy * dy)


def agreement(seg: Tensor, distance: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The means of p_S and of the distance over C_j, a person's cells within the threshold: N and N.

    seg H x W, distance N x H x W, infinite at cells that show no person. Without such cells 0 and infinity.
    """
    person, mean = _agreement(array(seg), array(distance), threshold)
    return torch.from_numpy(person), torch.from_numpy(mean)


@compiled
def _agreement(seg: Array, distance: Array, threshold: float) -> tuple[Array, Array]:
    people = len(distance)
    person, mean = np.zeros(people, seg.dtype), np.full(people, np.inf, seg.dtype)
    for n in range(people):
        count = 0
        total_seg = total = 0.0
        for row in range(seg.shape[0]):
            for column in range(seg.shape[1]):
                if distance[n, row, column] <= threshold:
                    count += 1
                    total_seg += seg[row, column]
                    total += distance[n, row, column]
        if count:
            person[n], mean[n] = total_seg / count, total / count
    return person, mean


def rivals(distance: Tensor, unclaimed: Tensor) -> Tensor:
    """The least distance of every cell from the better poses, of which half is unclaimed: N x H x W.

    distance N x H x W of poses, best first; unclaimed N x K bool. Infinite without better poses.
    """
    least = torch.full_like(distance, torch.inf)
    own = (unclaimed.float().mean(1) >= 0.5).tolist()
    for j in range(1, len(own)):
        least[j] = torch.minimum(least[j - 1], distance[j - 1]) if own[j - 1] else least[j - 1]
    return least


def person_pixels(seg: Tensor, *, step: float, height: int, width: int) -> Tensor:
    """The pixels that show a person: height x width bool.

    seg (H x W) is on the output cells and is interpolated bilinearly before it is cut at 0.5; image pixel
    (x, y) is cell (step * x, step * y).
    """
    return torch.from_numpy(_person_pixels(array(seg), step, height, width, PERSON))


@compiled
def _person_pixels(seg: Array, step: float, height: int, width: int, cut: float) -> Mask:
    rows, columns = seg.shape
    person = np.zeros((height, width), np.bool_)
    is_person = seg >= cut
    firsts = _first_pixels(step, width, columns)
    for y in range(height):
        top, bottom, below = _between(y * step, rows)
        for left in range(columns):
            right = min(left + 1, columns - 1)
            count = (
                is_person[top, left]
                + is_person[top, right]
                + is_person[bottom, left]
                + is_person[bottom, right]
            )
            if count == 4:
                person[y, firsts[left] : firsts[left + 1]] = True
            elif count > 0:
                here = (1 - below) * seg[top, left] + below * seg[bottom, left]
                there = (1 - below) * seg[top, right] + below * seg[bottom, right]
                for x in range(firsts[left], firsts[left + 1]):
                    beside = min(x * step, columns - 1.0) - left
                    person[y, x] = (1 - beside) * here + beside * there >= cut
    return person


@compiled
def _first_pixels(step: float, width: int, columns: int) -> Index:
    """The first pixel between cells j and j + 1, for every j and beyond: columns + 1."""
    lefts = np.minimum((np.arange(width) * step).astype(np.int64), columns - 1)
    return np.searchsorted(lefts, np.arange(columns + 1))


@compiled
def _between(place: float, cells: int) -> tuple[int, int, float]:
    """The cells before and behind a place, in cells, and the share of the latter."""
    place = min(place, cells - 1.0)
    before = int(place)
    return before, min(before + 1, cells - 1), place - before


def full_resolution(
    person: Tensor, distance: Tensor, rival: Tensor, *, step: float, threshold: float
) -> Tensor:
    """The mask of one person over the whole image, height x width bool.

    The person's pixels are those of `person` (height x width bool, `person_pixels`) whose distance is at most
    `threshold` and not above that of `rival`. Distances (H x W) are on the output cells; image pixel (x, y)
    is cell (step * x, step * y). They are interpolated bilinearly among person cells alone, since they mean
    nothing elsewhere, and count as at most twice the threshold: the border between two people then lies
    half-way between their cells, however far apart they are. Without rivals, pixels belong to every person
    close enough: the assignment is not exclusive.
    """
    return torch.from_numpy(_mask(array(person), array(distance), array(rival), step, threshold))


@compiled
def _mask(person: Mask, distance: Array, rival: Array, step: float, threshold: float) -> Mask:
    """Where all cells around a pixel agree, nothing is interpolated."""
    rows, columns = distance.shape
    height, width = person.shape
    mask = np.zeros((height, width), np.bool_)
    known = distance < np.inf
    near = known & (distance <= threshold)
    own = near & (distance <= rival)
    has_near = np.array([near[row].any() for row in range(rows)])
    in_column = np.flatnonzero(np.array([near[:, column].any() for column in range(columns)]))
    firsts = _first_pixels(step, width, columns)
    for y in range(height):
        top, bottom, below = _between(y * step, rows)
        if not (has_near[top] or has_near[bottom]):
            continue
        for left in range(max(in_column[0] - 1, 0), in_column[-1] + 1):
            right = min(left + 1, columns - 1)
            if not (near[top, left] or near[top, right] or near[bottom, left] or near[bottom, right]):
                continue
            first, last = firsts[left], firsts[left + 1]
            if own[top, left] and own[top, right] and own[bottom, left] and own[bottom, right]:
                mask[y, first:last] = person[y, first:last]
                continue
            here = _weighted(distance, rival, top, bottom, below, left, threshold)
            there = _weighted(distance, rival, top, bottom, below, right, threshold)
            for x in range(first, last):
                if person[y, x]:
                    beside = min(x * step, columns - 1.0) - left
                    share = (1 - beside) * here[0] + beside * there[0]
                    ours = (1 - beside) * here[1] + beside * there[1]
                    theirs = (1 - beside) * here[2] + beside * there[2]
                    mask[y, x] = share > 0 and ours <= threshold * share and ours <= theirs
    return mask


@compiled
def _weighted(
    distance: Array, rival: Array, top: int, bottom: int, below: float, column: int, threshold: float
) -> tuple[float, float, float]:
    """Between two cells of a column: the share of known cells, and the distances times that share."""
    share = ours = theirs = 0.0
    for row, weight in ((top, 1 - below), (bottom, below)):
        if distance[row, column] < np.inf:
            share += weight
            ours += weight * min(distance[row, column], 2 * threshold)
            theirs += weight * min(rival[row, column], 2 * threshold)
    return share, ours, theirs
