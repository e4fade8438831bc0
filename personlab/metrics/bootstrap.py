"""How sure an AP is: the same detections, scored on images drawn again with replacement.

A drawn image counts as often as it was drawn, so a resampling is one weight per image and nothing is matched
twice. All weights 1 give pycocotools' AP.
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
    """The detections of all images, best first, and whom they found at T thresholds."""

    image: npt.NDArray[np.intp]  # D: index of the image
    true: npt.NDArray[np.bool_]  # T x D
    false: npt.NDArray[np.bool_]  # T x D
    people: Array  # I: how many there are to find in each image

    @classmethod
    def of(cls, matches: Matches, size: str = "all") -> Self:
        images = [found for _, found in matches.images(size)]
        order = np.argsort(-np.concatenate([found.scores for found in images]), kind="stable")
        image = np.repeat(np.arange(len(images)), [len(found.scores) for found in images])
        return cls(
            image=image[order],
            true=np.concatenate([found.true for found in images], axis=1)[:, order],
            false=np.concatenate([found.false for found in images], axis=1)[:, order],
            people=np.array([found.people for found in images], dtype=float),
        )

    def average_precision(self, weights: Array) -> float:
        """COCO's AP with each image counted `weights` times (I); NaN where there is nobody to find.

        The mean over the thresholds of the precision, made monotonic, at 101 recalls.
        """
        people = self.people @ weights
        if people == 0:
            return float("nan")
        weight = weights[self.image]
        true = (self.true * weight).cumsum(axis=1)
        false = (self.false * weight).cumsum(axis=1)
        precision = true / np.maximum(true + false, np.spacing(1))
        highest_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(highest_from_here, ((0, 0), (0, 1)))  # recalls never reached have precision 0
        reached = [np.searchsorted(recall, _RECALLS) for recall in true / people]
        return float(np.take_along_axis(padded, np.stack(reached), axis=1).mean())


def resampled_ap(matches: Matches, *, size: str = "all", samples: int = 1000, seed: int = 0) -> Array:
    """The AP of `samples` resamplings of the images, for people of a size (as `Matches.images`).

    Over the same images and with the same seed, two models are scored on the same resamplings: the
    difference of their two arrays is a paired bootstrap.
    """
    ranking = Ranking.of(matches, size)
    images = len(ranking.people)
    generator = np.random.default_rng(seed)
    draws = (generator.integers(images, size=images) for _ in range(samples))
    counts = (np.bincount(draw, minlength=images).astype(float) for draw in draws)
    return np.array([ranking.average_precision(weights) for weights in counts])


def interval(values: Array, coverage: float = 0.95) -> tuple[float, float]:
    """The central interval that holds `coverage` of the values; NaN values left out."""
    tail = (1 - coverage) / 2
    known = values[~np.isnan(values)]
    if known.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(known, (tail, 1 - tail))
    return float(low), float(high)
