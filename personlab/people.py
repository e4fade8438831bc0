"""People as the rest of the program passes them around: annotated ones in, detected ones out."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Detection:
    """One detected person, in the coordinates of the image it was found in."""

    keypoints: FloatArray  # K x 2, (x, y)
    keypoint_scores: FloatArray  # K, in [0, 1]
    score: float
    # COCO compressed run-length string of the mask, at full image resolution; empty if nobody looked for one
    rle: bytes
