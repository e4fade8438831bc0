"""Object keypoint similarity (OKS) of each keypoint."""

import numpy as np
import numpy.typing as npt

from personlab.metrics.coco import Matches

Array = npt.NDArray[np.float64]


def similarity(
    detected: npt.NDArray[np.floating], annotated: Array, area: Array | float, kappas: npt.ArrayLike
) -> Array:
    """exp(-d^2 / (2 area kappa_k^2)) of detected and annotated keypoints (... x K x 2, pixels): ... x K.

    `area` is the annotation's, in pixels (...). OKS is the mean over the annotated keypoints
    (https://cocodataset.org/#keypoints-eval).
    """
    distance = np.square(detected - annotated).sum(axis=-1)
    scale = 2 * np.asarray(area)[..., None] * np.square(kappas)
    similarities: Array = np.exp(-distance / scale)
    return similarities


def per_keypoint(matches: Matches) -> tuple[Array, npt.NDArray[np.int64]]:
    """Mean similarity of each keypoint, NaN if it is never annotated, and the number of people (K and K).

    The mean is over the people matched at OKS .50 that have the keypoint annotated.
    """
    pairs, count = list(matches.pairs(threshold=0.5)), len(matches.keypoint_names)
    people = np.array([person["keypoints"] for person, _ in pairs]).reshape(-1, count, 3)
    detected = np.array([detection["keypoints"] for _, detection in pairs]).reshape(-1, count, 3)
    area = np.array([person["area"] for person, _ in pairs])
    annotated = people[..., 2] > 0
    similarities = similarity(detected[..., :2], people[..., :2], area, matches.kappas)
    total, number = np.where(annotated, similarities, 0).sum(axis=0), annotated.sum(axis=0)
    return np.divide(total, number, out=np.full(count, np.nan), where=number > 0), number
