"""The mean pose of annotated people, within their boxes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from personlab.people import Annotation, FloatArray


@dataclass(frozen=True)
class MeanPose:
    """The mean position of each keypoint in a person's box."""

    keypoints: FloatArray  # K x 2, fractions of the box's width and height

    @classmethod
    def of(cls, people: Sequence[Annotation]) -> Self:
        """The mean over the labelled keypoints of `people`; (0, 0) for one that is never labelled."""
        points = np.stack([(person.keypoints - person.box[:2]) / person.box[2:] for person in people])
        labelled = np.stack([person.visibility > 0 for person in people])[..., None]
        total, count = points.sum(axis=0, where=labelled), labelled.sum(axis=0)
        return cls((total / np.maximum(count, 1)).astype(np.float32))

    def complete(self, person: Annotation) -> Annotation:
        """The person with every keypoint labelled; crowds are returned unchanged.

        Unlabelled keypoints are those of the mean pose, scaled to the box, shifted to fit the labelled
        keypoints (least squares) and clipped to the box.
        """
        if person.crowd:
            return person
        x, y, width, height = person.box
        labelled = (person.visibility > 0)[:, None]
        mean = self.keypoints * np.array([width, height], np.float32) + np.array([x, y], np.float32)
        if labelled.any():
            mean = mean + (person.keypoints - mean).mean(axis=0, where=labelled)
        clipped = mean.clip([x, y], [x + width, y + height])
        return replace(
            person,
            keypoints=np.where(labelled, person.keypoints, clipped).astype(np.float32),
            visibility=np.where(labelled[:, 0], person.visibility, 1).astype(np.int8),
        )
