"""The kinds of errors of keypoints, one keypoint and one person at a time."""

from collections.abc import Sequence
from math import exp

import numpy as np


def keypoint_kind(
    k: int,
    detected: np.ndarray,
    people: np.ndarray,
    areas: Sequence[float],
    person: int,
    kappas: Sequence[float],
    flip: Sequence[int] | None,
) -> str:
    """As `errors.keypoint_kinds`, of keypoint k, by name; "none" if it is not annotated."""

    def near(who: int, kind: int) -> float:
        x, y, visibility = people[who, kind]
        squared = (detected[k, 0] - x) ** 2 + (detected[k, 1] - y) ** 2
        return exp(-squared / (2 * areas[who] * kappas[k] ** 2)) if visibility > 0 else 0.0

    if people[person, k, 2] == 0:
        return "none"
    own = near(person, k)
    if own >= 0.85:
        return "good"
    if own >= 0.5:
        return "jitter"
    kinds = {k} if flip is None else {k, flip[k]}
    inverted = max((near(person, kind) for kind in kinds - {k}), default=0.0)
    swapped = max(
        (near(who, kind) for who in range(len(people)) for kind in kinds if who != person), default=0.0
    )
    if max(inverted, swapped) < 0.5:
        return "miss"
    return "inversion" if inverted >= swapped else "swap"
