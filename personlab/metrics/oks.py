"""Object keypoint similarity (OKS) of each keypoint."""

import numpy as np
import numpy.typing as npt

from personlab.metrics.coco import Matches
from personlab.skeleton import KAPPAS, K

Array = npt.NDArray[np.float64]


def similarity(detected: Array, annotated: Array, area: Array | float) -> Array:
    """exp(-d^2 / (2 area kappa_k^2)) of detected and annotated keypoints (... x K x 2, pixels): ... x K.

    `area` is the annotation's, in pixels (...). OKS is the mean over the annotated keypoints
    (https://cocodataset.org/#keypoints-eval).
    """
    distance = np.square(detected - annotated).sum(axis=-1)
    scale = 2 * np.asarray(area)[..., None] * np.square(KAPPAS)
    similarities: Array = np.exp(-distance / scale)
    return similarities


def per_keypoint(matches: Matches) -> tuple[Array, npt.NDArray[np.int64]]:
    """Mean similarity of each keypoint, NaN if it is never annotated, and the number of people (K and K).

    The mean is over the people matched at OKS .50 that have the keypoint annotated.
    """
    pairs = list(matches.pairs(threshold=0.5))
    people = np.array([person["keypoints"] for person, _ in pairs]).reshape(-1, K, 3)
    detected = np.array([detection["keypoints"] for _, detection in pairs]).reshape(-1, K, 3)
    area = np.array([person["area"] for person, _ in pairs])
    annotated = people[..., 2] > 0
    total = np.where(annotated, similarity(detected[..., :2], people[..., :2], area), 0).sum(axis=0)
    count = annotated.sum(axis=0)
    return np.divide(total, count, out=np.full(K, np.nan), where=count > 0), count
