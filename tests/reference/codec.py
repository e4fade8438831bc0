"""Every equation of the codec, one cell and one person at a time, in double precision.

Written from the paper (Papandreou et al., PersonLab, ECCV 2018, section 3) to be read beside it, and slow.
All arrays describe one image: heatmap K x H x W, short K x 2 x H x W, mid E x 2 x H x W, seg H x W,
long K x 2 x H x W. Places and offsets are (x, y) in input pixels; cell (i, j) sits on pixel
(stride * j, stride * i). Where the paper is silent, on pyramids, docs/notes/codec.md is followed.
"""

import heapq
import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tests.coco_person import EDGES, KAPPAS, E, K

Array = npt.NDArray[np.float64]
Point = tuple[float, float]


# targets (section 3.1, heatmaps, short- and mid-range offsets; section 3.2, long-range offsets)


@dataclass(frozen=True)
class Targets:
    """Target fields and, beside each, where it is defined."""

    heatmap: Array
    short: Array
    mid: Array
    seg: Array
    long: Array
    heatmap_valid: Array
    short_valid: Array
    mid_valid: Array
    seg_valid: Array
    long_valid: Array


def targets(keypoints, labelled, masks, crowd, imputed, unmasked, *, stride: int, radius: float) -> Targets:
    """Section 3.1 and 3.2, word by word.

    keypoints P x K x 2, labelled P x K, masks P x H x W (covered share of each cell), crowd P,
    imputed P, unmasked P.
    """
    height, width = masks.shape[1:]
    shapes = ((K,), (K, 2), (E, 2), (), (K, 2), (K,), (K,), (E,), (), (K,))
    t = Targets(*(np.zeros((*c, height, width)) for c in shapes))
    people = [j for j in range(len(crowd)) if not crowd[j]]
    outlined = [j for j in people if not unmasked[j]]
    for row in range(height):
        for column in range(width):
            x = (float(stride * column), float(stride * row))
            cell = (row, column)
            # p_k(x) = 1 if x is in the disk of anyone; S_k(x) points to the closest person's keypoint.
            owner: dict[int, int] = {}
            for k in range(K):
                near = [(math.dist(keypoints[j][k], x), j) for j in people if labelled[j][k]]
                if near and min(near)[0] <= radius:
                    owner[k] = min(near)[1]
                    t.heatmap[k, *cell] = t.short_valid[k, *cell] = 1
                    t.short[k, :, *cell] = _offset(x, keypoints[owner[k]][k])
            # M_kl(x) = y_jl - x on the disk of y_jk, for the same person j, if both ends are present.
            for e, (k, end) in enumerate(EDGES):
                if k in owner and labelled[owner[k]][end]:
                    t.mid_valid[e, *cell] = 1
                    t.mid[e, :, *cell] = _offset(x, keypoints[owner[k]][end])
            here = [j for j in outlined if masks[j][cell] >= 0.5]
            # Pixels of people without a mask are unknown, and all pixels where there are no masks at all.
            unknown = any(unmasked[j] and masks[j][cell] > 0 for j in people)
            unknown |= any(unmasked) and not outlined
            in_crowd = any(crowd[j] and masks[j][cell] > 0 for j in range(len(crowd)))
            # Someone here may have a keypoint that nobody looked for, or that no estimate is sure of.
            for k in range(K):
                t.heatmap_valid[k, *cell] = not in_crowd and not any(
                    (imputed[j] or not any(labelled[j])) and not labelled[j][k] and masks[j][cell] > 0
                    for j in people
                )
            t.seg[cell] = min(1.0, sum(float(masks[j][cell]) for j in outlined))
            t.seg_valid[cell] = not in_crowd and not unknown
            # L_k(x) = y_jk - x inside the mask of the one person there is.
            if len(here) == 1 and not in_crowd and not unknown:
                for k in range(K):
                    if labelled[here[0]][k]:
                        t.long_valid[k, *cell] = 1
                        t.long[k, :, *cell] = _offset(x, keypoints[here[0]][k])
    return t


def _offset(start: Point, end) -> Point:
    return float(end[0]) - start[0], float(end[1]) - start[1]


# sampling and refinement (equations 2 and 5)


def bilinear(field: Array, xy: Point, stride: float) -> Array:
    """The field (... x H x W) at a place in pixels; beyond the map, its value at the border."""
    height, width = field.shape[-2:]
    x = min(max(xy[0] / stride, 0.0), width - 1.0)
    y = min(max(xy[1] / stride, 0.0), height - 1.0)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    fx, fy = x - left, y - top
    return (
        (1 - fy) * (1 - fx) * field[..., top, left]
        + (1 - fy) * fx * field[..., top, right]
        + fy * (1 - fx) * field[..., bottom, left]
        + fy * fx * field[..., bottom, right]
    )


def refine_mid(mid: Array, short: Array, *, stride: int, steps: int) -> Array:
    """Equation 2 at every cell: go where M_kl points, then on by the *target's* short-range offset S_l."""
    for _ in range(steps):
        mid = np.stack([_then(mid[e], short[target], stride) for e, (_, target) in enumerate(EDGES)])
    return mid


def refine_long(long: Array, short: Array, *, stride: int, steps: int) -> Array:
    """Equation 5 at every cell: `steps` times by the long-range field itself, then by the short-range one."""
    for _ in range(steps):
        long = np.stack([_then(long[k], long[k], stride) for k in range(K)])
    for _ in range(steps):
        long = np.stack([_then(long[k], short[k], stride) for k in range(K)])
    return long


def _then(offset: Array, further: Array, stride: int) -> Array:
    """x + offset(x) is x'; return x' + further(x') - x."""
    result = np.zeros_like(offset)
    for row in range(offset.shape[1]):
        for column in range(offset.shape[2]):
            dx, dy = offset[:, row, column]
            there = (stride * column + dx, stride * row + dy)
            result[:, row, column] = offset[:, row, column] + bilinear(further, there, stride)
    return result


# a pyramid


@dataclass(frozen=True)
class Level:
    """The fields of the image at one scale, and how they are seen in a frame that all levels share."""

    heatmap: Array
    short: Array
    mid: Array
    stride: int
    ratio: float = 1.0  # pixels of this level per pixel of the frame
    share: float = 1.0  # of what is said about places by all levels


def offset(levels: list[Level], name: str, channel: int, kind: int, place: Array) -> Array:
    """The mean of what the levels say at a place of the frame, each weighted by share and probability."""
    total, weights = np.zeros(2), 0.0
    for level in levels:
        there = (place[0] * level.ratio, place[1] * level.ratio)
        weight = level.share * (float(bilinear(level.heatmap[kind], there, level.stride)) + 1e-6)
        total += weight * bilinear(getattr(level, name)[channel], there, level.stride) / level.ratio
        weights += weight
    return total / weights


# Hough voting (equation 1) and seeds


def hough(
    heatmap, short, *, stride: int, radius: float, height: float, width: float, bin: float, ratio: float = 1.0
) -> Array:
    """Equation 1 into bins `bin` pixels of the frame apart: K x bins high x bins wide.

    A cell stands for stride^2 of the equation's pixels. B is the bilinear kernel of the accumulator; what
    lands outside the height x width pixels of the frame is lost.
    """
    rows, columns = math.ceil((height - 1) / bin) + 1, math.ceil((width - 1) / bin) + 1
    h = np.zeros((K, rows, columns))
    for k in range(K):
        for row in range(heatmap.shape[1]):
            for column in range(heatmap.shape[2]):
                x = (stride * column + short[k, 0, row, column]) / ratio / bin
                y = (stride * row + short[k, 1, row, column]) / ratio / bin
                weight = heatmap[k, row, column] * stride**2 / (math.pi * radius**2)
                for i in (math.floor(y), math.floor(y) + 1):
                    for j in (math.floor(x), math.floor(x) + 1):
                        if 0 <= i < rows and 0 <= j < columns:
                            h[k, i, j] += weight * max(0, 1 - abs(x - j)) * max(0, 1 - abs(y - i))
    return h


@dataclass(frozen=True)
class Seed:
    score: float
    kind: int
    xy: Point


def seeds(h: Array, *, bin: float, threshold: float) -> list[Seed]:
    """Local maxima of the score maps above the threshold, each at the centroid of the bins around it, with
    what they hold together for its score."""
    padded = np.pad(h, ((0, 0), (1, 1), (1, 1)))
    found = []
    for kind, row, column in np.argwhere(h > threshold).tolist():
        around = padded[kind, row : row + 3, column : column + 3]
        before, after = around.flat[:4], around.flat[5:]  # of equal neighbours the first one counts
        if (before < h[kind, row, column]).all() and (after <= h[kind, row, column]).all():
            x = sum(around[i, j] * (column + j - 1) for i in range(3) for j in range(3)) / around.sum()
            y = sum(around[i, j] * (row + i - 1) for i in range(3) for j in range(3)) / around.sum()
            found.append(Seed(round(float(around.sum()), 6), kind, (float(x) * bin, float(y) * bin)))
    return found


# fast greedy decoding


def trace(levels: list[Level], seed: Seed, *, steps: int) -> Array:
    """y_l = y_k + M_kl(y_k) from the seed along the tree, each refined by `steps` of equation 2: K x 2.

    Handed one level whose offsets are refined already, and `steps` of 0, this is the paper to the letter.
    """
    pose = np.full((K, 2), np.nan)
    pose[seed.kind] = seed.xy

    def visit(k: int) -> None:
        for e, (source, target) in enumerate(EDGES):
            if source == k and np.isnan(pose[target, 0]):
                place = pose[k] + offset(levels, "mid", e, k, pose[k])
                for _ in range(steps):
                    place = place + offset(levels, "short", target, target, place)
                pose[target] = place
                visit(target)

    visit(seed.kind)
    return pose


def group(levels: list[Level], candidates: list[Seed], *, steps: int, nms_radius: float) -> list[Array]:
    """Pop seeds best first; one within `nms_radius` of the same keypoint of a found person is rejected."""
    queue = [(-seed.score, order, seed) for order, seed in enumerate(candidates)]
    heapq.heapify(queue)
    people: list[Array] = []
    while queue:
        _, _, seed = heapq.heappop(queue)
        if all(math.dist(pose[seed.kind], seed.xy) > nms_radius for pose in people):
            people.append(trace(levels, seed, steps=steps))
    return people


# scores (equation 3) and non-maximum suppression (equation 4)


def presence(heatmap: Array, pose: Array, *, stride: int, height: float, width: float) -> list[float]:
    """p_k(y_jk) of each keypoint; none is present outside the image (half a pixel around the outermost)."""
    return [
        float(bilinear(heatmap[k], (x, y), stride))
        if -0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5
        else 0.0
        for k, (x, y) in enumerate(pose.tolist())
    ]


def extent(pose: Array, present) -> float:
    """lambda_j: the square root of the area of the box tightly containing all *detected* keypoints.

    Detected is what has p >= 0.5; where fewer than two are, all count. No side is under one pixel.
    """
    detected = [k for k in range(K) if present[k] >= 0.5]
    if len(detected) < 2:
        detected = list(range(K))
    sides = [max(max(c) - min(c), 1.0) for c in (pose[detected, 0], pose[detected, 1])]
    return math.sqrt(sides[0] * sides[1])


def hough_score(h: Array, pose: Array, *, bin: float) -> list[float]:
    """s_jk = h_k(y_jk), nothing outside the map."""
    padded = np.pad(h, ((0, 0), (1, 1), (1, 1)))
    return [float(bilinear(padded[k], (x + bin, y + bin), bin)) for k, (x, y) in enumerate(pose.tolist())]


def expected_oks(h: Array, pose: Array, present, *, bin: float, radius: float) -> list[float]:
    """Equation 3, the integral as a sum over the bins in the disk; without votes there the score is 0."""
    scale = extent(pose, present)
    scores = []
    for k in range(K):
        x, y = pose[k]
        mass = likeness = 0.0
        rows, columns = h.shape[1:]
        for i in range(max(0, int((y - radius) / bin)), min(rows, int((y + radius) / bin) + 2)):
            for j in range(max(0, int((x - radius) / bin)), min(columns, int((x + radius) / bin) + 2)):
                squared = (bin * j - x) ** 2 + (bin * i - y) ** 2
                if squared <= radius**2:
                    mass += h[k, i, j]
                    likeness += h[k, i, j] * math.exp(-squared / (2 * scale**2 * KAPPAS[k] ** 2))
        scores.append(float(present[k]) * likeness / mass if mass > 0 else 0.0)
    return scores


def mean_shift(h: Array, pose: Array, present, *, bin: float, radius: float) -> Array:
    """Every keypoint to the mean of the votes in its disk, weighted by a Gaussian around it."""
    scale = extent(pose, present)
    shifted = pose.copy()
    for k, (x, y) in enumerate(pose.tolist()):
        sigma = max(radius / 8, scale * KAPPAS[k] / 2)
        total, mass = np.zeros(2), 0.0
        for i in range(h.shape[1]):
            for j in range(h.shape[2]):
                squared = (bin * j - x) ** 2 + (bin * i - y) ** 2
                if squared <= radius**2:
                    weight = h[k, i, j] * math.exp(-squared / (2 * sigma**2))
                    total += weight * np.array([bin * j, bin * i])
                    mass += weight
        if mass > 0:
            shifted[k] = total / mass
    return shifted


def person_score(keypoint_scores, unclaimed, score: float, certainty: float, distance: float) -> float:
    """Of a pose of this score whose cells have this mean p_S and distance (in units of the threshold)."""
    squares = sum(s**2 for s, u in zip(keypoint_scores, unclaimed, strict=True) if u)
    pose = squares / sum(keypoint_scores) if sum(keypoint_scores) else 0.0
    return pose * score**0.1 * max(0.01, min(certainty / 0.92, 1.0) ** 4) * max(0.01, 1 - distance)


def soft_nms(poses: list[Array], keypoint_scores, *, nms_radius: float) -> list[tuple[int, float]]:
    """Equation 4: (index, score) of every pose, best first by the new score."""
    order = sorted(range(len(poses)), key=lambda j: -np.mean(keypoint_scores[j]))
    scored = []
    for rank, j in enumerate(order):
        unclaimed = [
            keypoint_scores[j][k]
            for k in range(K)
            if all(math.dist(poses[j][k], poses[better][k]) > nms_radius for better in order[:rank])
        ]
        scored.append((j, sum(unclaimed) / K))
    return sorted(scored, key=lambda item: -item[1])


def hard_nms(poses: list[Array], presences, keypoint_scores, *, most: float) -> list[tuple[int, float]]:
    """Keep, best first, every pose whose OKS with each kept one (at that one's size) is at most `most`."""
    kept: list[int] = []
    for j in sorted(range(len(poses)), key=lambda j: -np.mean(keypoint_scores[j])):
        if all(oks(poses[j], poses[i], extent(poses[i], presences[i])) <= most for i in kept):
            kept.append(j)
    return [(j, float(np.mean(keypoint_scores[j]))) for j in kept]


def oks(pose: Array, truth: Array, scale: float) -> float:
    """Object keypoint similarity over all K keypoints (COCO)."""
    return (
        sum(
            math.exp(-(math.dist(pose[k], truth[k]) ** 2) / (2 * scale**2 * KAPPAS[k] ** 2)) for k in range(K)
        )
        / K
    )


# masks (equation 6)


def embedding_distance(seg, long, pose, present, scale: float, *, stride: int) -> Array:
    """D of equation 6 at every cell, H x W; infinite where p_S < 0.5. `long` has been refined."""
    distance = np.full(seg.shape, np.inf)
    for row, column in np.argwhere(seg >= 0.5).tolist():
        total = 0.0
        for k in range(K):
            embedding = (
                stride * column + long[k, 0, row, column],
                stride * row + long[k, 1, row, column],
            )
            total += present[k] * math.dist(embedding, pose[k]) / scale
        distance[row, column] = total / sum(present)
    return distance


def mask(
    seg, distance, *, step: float, height: int, width: int, threshold: float, rival=None
) -> npt.NDArray[np.bool_]:
    """Pixels with p_S >= 0.5 and D <= t, both interpolated from the cells; D among the person cells alone.

    What is farther than 2 t counts as 2 t. Image pixel (x, y) lies at cell (step * x, step * y). Where the
    distance from a `rival` is smaller, the pixel is the rival's.
    """
    rival = np.full_like(distance, np.inf) if rival is None else rival
    result = np.zeros((height, width), dtype=bool)
    cell_is_person = seg >= 0.5
    for y in range(height):
        for x in range(width):
            if bilinear(seg, (x * step, y * step), 1) < 0.5:
                continue
            weight = float(bilinear(cell_is_person.astype(float), (x * step, y * step), 1))
            known = np.where(cell_is_person, np.minimum(distance, 2 * threshold), 0.0)
            near = float(bilinear(known, (x * step, y * step), 1))
            of_rival = np.where(cell_is_person, np.minimum(rival, 2 * threshold), 0.0)
            is_own = near <= float(bilinear(of_rival, (x * step, y * step), 1))
            result[y, x] = weight > 0 and near / weight <= threshold and is_own
    return result


def guided_filter(guide: Array, p: Array, *, radius: int, epsilon: float) -> Array:
    """He, Sun and Tang: p (H x W) as the mean of linear functions of the colours (3 x H x W) around it."""
    rows, columns = p.shape

    def box(row: int, column: int) -> tuple[slice, slice]:
        return (
            slice(max(row - radius, 0), row + radius + 1),
            slice(max(column - radius, 0), column + radius + 1),
        )

    a, b = np.zeros((3, rows, columns)), np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            colours, values = guide[:, *box(row, column)].reshape(3, -1), p[box(row, column)].ravel()
            centred = colours - colours.mean(1, keepdims=True)
            covariance = centred @ centred.T / values.size + epsilon * np.eye(3)
            a[:, row, column] = np.linalg.solve(covariance, centred @ (values - values.mean()) / values.size)
            b[row, column] = values.mean() - a[:, row, column] @ colours.mean(1)
    result = np.zeros_like(p)
    for row in range(rows):
        for column in range(columns):
            slope = a[:, *box(row, column)].reshape(3, -1).mean(1)
            result[row, column] = slope @ guide[:, row, column] + b[box(row, column)].mean()
    return result


# all of it


@dataclass(frozen=True)
class Person:
    pose: Array
    presence: list[float]
    keypoint_scores: list[float]
    score: float


def seen(level: Level, pose: Array, height: float, width: float) -> list[float]:
    """The presence of each keypoint of a pose in the height x width frame, at one level."""
    size = {"height": (height - 1) * level.ratio + 1, "width": (width - 1) * level.ratio + 1}
    return presence(level.heatmap, pose * level.ratio, stride=level.stride, **size)


def decode(
    levels: list[Level],
    *,
    radius: float,
    nms_radius: float,
    bin: float,
    threshold: float,
    steps: int,
    height: float,
    width: float,
    scoring: str,
    nms: str,
    extensions: Collection[str] = (),
) -> list[Person]:
    """People of one image, in pixels of the height x width frame, best first."""
    size = {"height": height, "width": width}
    h = sum(
        level.share
        * hough(
            level.heatmap,
            level.short,
            stride=level.stride,
            radius=radius,
            bin=bin,
            ratio=level.ratio,
            **size,
        )
        for level in levels
    )
    poses = group(levels, seeds(h, bin=bin, threshold=threshold), steps=steps, nms_radius=nms_radius)
    present = [
        np.mean([seen(level, pose, height, width) for level in levels], axis=0).tolist() for pose in poses
    ]
    if "mean-shift" in extensions:
        poses = [
            mean_shift(h, pose, p, bin=bin, radius=radius) for pose, p in zip(poses, present, strict=True)
        ]
        present = [
            np.mean([seen(level, pose, height, width) for level in levels], axis=0).tolist() for pose in poses
        ]
    if scoring == "hough":
        scores = [hough_score(h, pose, bin=bin) for pose in poses]
    else:
        scores = [
            expected_oks(h, pose, p, bin=bin, radius=radius) for pose, p in zip(poses, present, strict=True)
        ]
    if nms == "soft":
        order = soft_nms(poses, scores, nms_radius=nms_radius)
    else:
        order = hard_nms(poses, present, scores, most=0.5)
    return [Person(poses[j], present[j], scores[j], score) for j, score in order]
