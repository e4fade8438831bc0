"""Check a person's record of a COCO annotation file against the size of its image.

Values are those that COCO's own tools use:
- unlabelled keypoints (visibility 0) are (0, 0);
- labelled keypoints and boxes may exceed the image's border by up to `MARGIN` pixels (COCO rounds) and are
  kept as annotated, so that scores equal those of COCO's tools; farther out, the record is rejected;
- polygons with fewer than three points are ignored; an empty mask is rejected;
- a missing box is that of the mask or of the labelled keypoints, a missing area that of the mask.

Missing is also what is null or an empty list.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from personlab.data.json_fields import BadRecordError, integer, number, numbers, shown
from personlab.data.segmentation import bounds, rle_and_area
from personlab.people import Annotation, Box, FloatArray
from personlab.skeleton import KEYPOINTS, K

MARGIN: Final = 1.0

Array = npt.NDArray[np.float64]


def annotation(record: Any, height: int, width: int) -> Annotation:
    """The person in a height x width image. Without a segmentation, `rle` is empty.

    Raises:
        BadRecordError: the record is not what COCO writes.
    """
    person_id = integer(record, "id", 0, 2**63)
    integer(record, "category_id", 0, 2**63)
    crowd = record.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise BadRecordError(f"iscrowd is {shown(crowd)}, not 0 or 1")
    keypoints, visibility = _keypoints(record.get("keypoints"), height, width)
    segmentation, area, rle = record.get("segmentation"), record.get("area"), b""
    if segmentation not in (None, []):
        rle, mask_area = rle_and_area(segmentation, height, width)
        area = mask_area if area is None else area
    if area is None:
        raise BadRecordError("has neither area nor segmentation")
    if (area := number({"area": area}, "area")) <= 0:
        raise BadRecordError(f"area is {area:g}")
    mask, labelled = bounds(rle, height, width) if rle else None, keypoints[visibility > 0]
    box = _box(record.get("bbox"), height, width, mask, labelled)
    return Annotation(
        id=person_id,
        keypoints=keypoints,
        visibility=visibility,
        imputed=False,
        box=box,
        area=area,
        crowd=bool(crowd),
        rle=rle,
    )


def _keypoints(value: Any, height: int, width: int) -> tuple[FloatArray, npt.NDArray[np.int8]]:
    """Positions (K x 2) and visibilities (K); without keypoints (COCO's instances files), all unlabelled."""
    if value in (None, []):
        return np.zeros((K, 2), np.float32), np.zeros(K, np.int8)
    triples = numbers(value, "keypoints")
    if len(triples) != 3 * K:
        raise BadRecordError(
            f"keypoints holds {len(triples)} numbers, not {3 * K}: x, y, visibility of COCO's {K} keypoints"
        )
    xy, visibility = triples.reshape(K, 3)[:, :2], triples[2::3]
    for name, found in zip(KEYPOINTS, visibility, strict=True):
        if found not in (0, 1, 2):
            raise BadRecordError(
                f"the visibility of {name} is {found:g}, not 0 (unlabelled), 1 (hidden) or 2 (visible)"
            )
    labelled = visibility > 0
    outside = labelled & _outside(xy, height, width).any(axis=1)
    if outside.any():
        k = int(outside.argmax())
        raise BadRecordError(f"{KEYPOINTS[k]} at {_text(xy[k])} is outside the image of {width} x {height}")
    return np.where(labelled[:, None], xy, 0).astype(np.float32), visibility.astype(np.int8)


def _box(value: Any, height: int, width: int, mask: Array | None, labelled: FloatArray) -> Box:
    """The box (x, y, width, height), checked against the mask's (x0, y0, x1, y1) and the labelled keypoints
    (N x 2)."""
    if value in (None, []):
        if mask is None and not len(labelled):
            raise BadRecordError("has no bbox")
        low, high = (labelled.min(axis=0), labelled.max(axis=0)) if mask is None else np.split(mask, 2)
        value = [*low.tolist(), *(high - low).clip(1).tolist()]
    box = numbers(value, "bbox")
    if len(box) != 4:
        raise BadRecordError(f"bbox holds {len(box)} numbers, not 4: x, y, width, height")
    low, size = np.split(box, 2)
    high = low + size
    if (size.astype(np.float32) <= 0).any():  # tables hold float32
        raise BadRecordError(f"bbox has no area: {size[0]:g} x {size[1]:g}")
    if _outside(np.array([low, high]), height, width).any():
        raise BadRecordError(
            f"bbox {_text(box)} (x, y, width, height) is outside the image of {width} x {height}"
        )
    if mask is not None and ((mask[2:] < low - MARGIN) | (mask[:2] > high + MARGIN)).any():
        raise BadRecordError(
            f"bbox {_text(box)} and the mask, from {_text(mask[:2])} to {_text(mask[2:])}, lie apart"
        )
    # Keypoints may be outside the box, but hardly all of them by more than its size.
    near = ((labelled >= low - size - MARGIN) & (labelled <= high + size + MARGIN)).all(axis=1)
    if len(labelled) and not near.any():
        raise BadRecordError(
            f"no labelled keypoint is near the bbox {_text(box)}; one is at {_text(labelled[0])}"
        )
    return tuple(box.tolist())


def _outside(xy: Array, height: int, width: int) -> npt.NDArray[np.bool_]:
    return (xy < -MARGIN) | (xy > np.array([width, height]) + MARGIN)


def _text(values: Array | FloatArray) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
