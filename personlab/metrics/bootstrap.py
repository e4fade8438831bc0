"""Bootstrap confidence intervals of AP: detections scored on images resampled with replacement.

A resampling is a weight per image, the number of times it was drawn, so detections are matched only once.
With weights of 1 the result is pycocotools' AP.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from personlab.metrics.coco import Matches

Array = npt.NDArray[np.float64]

_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Ranking:
    """The detections of all images, best first, and whether they are correct at T thresholds."""

    image: npt.NDArray[np.intp]  # D: index of the image
    true_positive: npt.NDArray[np.bool_]  # T x D
    false_positive: npt.NDArray[np.bool_]  # T x D
    people: Array  # I: annotated people in each image

    @classmethod
    def of(cls, matches: Matches, size: str = "all") -> Self:
        images = [image for _, image in matches.images(size)]
        order = np.argsort(-np.concatenate([image.scores for image in images]), kind="stable")
        index = np.repeat(np.arange(len(images)), [len(image.scores) for image in images])
        return cls(
            image=index[order],
            true_positive=np.concatenate([image.true_positive for image in images], axis=1)[:, order],
            false_positive=np.concatenate([image.false_positive for image in images], axis=1)[:, order],
            people=np.array([image.people for image in images], dtype=float),
        )

    def average_precision(self, weights: Array) -> float:
        """COCO's AP with each image counted `weights` times (I); NaN without annotated people.

        The mean over thresholds and 101 recalls of the precision, made monotonic.
        """
        people = self.people @ weights
        if people == 0:
            return float("nan")
        weight = weights[self.image]
        true = (self.true_positive * weight).cumsum(axis=1)
        false = (self.false_positive * weight).cumsum(axis=1)
        precision = true / np.maximum(true + false, np.spacing(1))
        monotonic = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(monotonic, ((0, 0), (0, 1)))  # precision 0 at recalls that are not reached
        at_recalls = [np.searchsorted(recall, _RECALLS) for recall in true / people]
        return float(np.take_along_axis(padded, np.stack(at_recalls), axis=1).mean())


def resampled_ap(matches: Matches, *, size: str = "all", samples: int = 1000, seed: int = 0) -> Array:
    """AP of `samples` resamplings of the images, for people of a size (as in `Matches.images`).

    With the same images and seed, two models are scored on the same resamplings: the difference of their
    arrays is a paired bootstrap.
    """
    ranking = Ranking.of(matches, size)
    images = len(ranking.people)
    generator = np.random.default_rng(seed)
    draws = (generator.integers(images, size=images) for _ in range(samples))
    counts = (np.bincount(draw, minlength=images).astype(float) for draw in draws)
    return np.array([ranking.average_precision(weights) for weights in counts])


def interval(values: Array, coverage: float = 0.95) -> tuple[float, float]:
    """The central interval that holds `coverage` of the values, ignoring NaN."""
    tail = (1 - coverage) / 2
    defined = values[~np.isnan(values)]
    if defined.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, (tail, 1 - tail))
    return float(low), float(high)
