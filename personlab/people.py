"""People as the rest of the program passes them around: annotated ones in, detected ones out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Annotation:
    """One annotated person of one image, in COCO pixel coordinates of that image.

    `visibility` is COCO's: 0 not labelled, 1 labelled but hidden, 2 labelled and visible. A person
    without any labelled keypoint still has a mask. `rle` is COCO's compressed run-length string.
    """

    id: int
    keypoints: FloatArray  # K x 2, (x, y); rows with visibility 0 mean nothing
    visibility: npt.NDArray[np.int8]  # K
    imputed: bool
    box: tuple[float, float, float, float]  # x, y, width, height
    area: float
    crowd: bool
    rle: bytes

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """From a row of tables.PEOPLE, or an element of a target row's `people`, as Python values."""
        x, y, width, height = row["box"]
        return cls(
            id=row["person_id"],
            keypoints=np.array(row["keypoints"], np.float32).reshape(-1, 2),
            visibility=np.array(row["visibility"], np.int8),
            imputed=row["imputed"],
            box=(x, y, width, height),
            area=row["area"],
            crowd=row["crowd"],
            rle=row["mask"],
        )

    def to_row(self, confidence: npt.ArrayLike) -> dict[str, Any]:
        """The reverse of `from_row`. confidence: K numbers in [0, 1]."""
        return {
            "person_id": self.id,
            "keypoints": self.keypoints.ravel(),
            "visibility": self.visibility,
            "confidence": np.asarray(confidence, np.float32),
            "imputed": self.imputed,
            "box": self.box,
            "area": self.area,
            "crowd": self.crowd,
            "mask": self.rle,
        }


@dataclass(frozen=True)
class Detection:
    """One detected person, in the coordinates of the image it was found in."""

    keypoints: FloatArray  # K x 2, (x, y)
    keypoint_scores: FloatArray  # K, in [0, 1]
    score: float
    # COCO compressed run-length string of the mask, at full image resolution; empty if nobody looked for one
    rle: bytes

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """From an element of a prediction row's `people`, as Python values."""
        return cls(
            keypoints=np.array(row["keypoints"], np.float32).reshape(-1, 2),
            keypoint_scores=np.array(row["keypoint_scores"], np.float32),
            score=row["score"],
            rle=row["mask"],
        )

    def to_row(self) -> dict[str, Any]:
        """The reverse of `from_row`."""
        return {
            "score": self.score,
            "keypoints": self.keypoints.ravel(),
            "keypoint_scores": self.keypoint_scores,
            "mask": self.rle,
        }
