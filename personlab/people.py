"""Annotated and detected people."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

# People with lower scores are not drawn, not counted as found and not part of a COCO dataset. On photos at
# 801 px, nine of ten that are shown are correct (docs/notes/decoder.md).
SHOWN: Final = 0.15

# Keypoints with lower scores are not labelled in a COCO dataset.
SHOWN_KEYPOINT: Final = 0.2

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Box = tuple[float, float, float, float]  # x, y, width, height in pixels


@dataclass(frozen=True)
class Annotation:
    """An annotated person, in COCO's pixel coordinates of the image."""

    id: int
    keypoints: FloatArray  # K x 2, (x, y); undefined where the visibility is 0
    visibility: npt.NDArray[np.int8]  # K; 0 unlabelled, 1 labelled but occluded, 2 labelled and visible
    imputed: bool  # whether the keypoints are estimates
    box: Box
    area: float  # of the mask, pixels
    crowd: bool
    rle: bytes  # COCO's compressed run-length string of the mask

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """From a row of tables.PEOPLE, or an element of `people` in a row of tables.TARGETS."""
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
        """The inverse of `from_row`. confidence: K numbers in [0, 1]."""
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


def have_masks(people: Iterable[Annotation]) -> bool:
    """Whether any annotated person has a mask; crowds do not count."""
    return any(person.rle and not person.crowd for person in people)


@dataclass(frozen=True)
class Detection:
    """A detected person, in pixel coordinates of the image."""

    keypoints: FloatArray  # K x 2, (x, y)
    keypoint_scores: FloatArray  # K, in [0, 1]
    score: float  # of the pose and of its mask; in [0, 1] with Expected-OKS
    rle: bytes  # COCO's compressed run-length string of the mask; empty if masks were not predicted

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """From an element of `people` in a row of tables.PREDICTIONS."""
        return cls(
            keypoints=np.array(row["keypoints"], np.float32).reshape(-1, 2),
            keypoint_scores=np.array(row["keypoint_scores"], np.float32),
            score=row["score"],
            rle=row["mask"],
        )

    def to_row(self) -> dict[str, Any]:
        """The inverse of `from_row`."""
        return {
            "score": self.score,
            "keypoints": self.keypoints.ravel(),
            "keypoint_scores": self.keypoint_scores,
            "mask": self.rle,
        }
