"""Check a person's record of a COCO annotation file against the size of its image.

Values are those that COCO's own tools use:
- unlabelled keypoints (visibility 0) are (0, 0), whatever the file has there;
- labelled keypoints and boxes may exceed the image's border by up to `MARGIN` pixels (COCO rounds) and are
  kept as annotated, so that scores equal those of COCO's tools;
- polygons with fewer than three points are ignored; an empty mask is rejected.

What other files leave out or write otherwise is inferred, and noted:
- a missing `iscrowd` is 0, a missing mask stays unknown; `num_keypoints` is counted, not read;
- a missing box is that of the mask or, without one, of the labelled keypoints;
- a missing area is that of the mask or, without one, 0.53 times that of the box, as in CrowdPose and MPII;
- visibility 3 (AI Challenger: not in the image) is 0, and a fraction, a confidence (COCO-WholeBody), is 2;
- labelled keypoints farther outside the image are unlabelled, and boxes are cut off at its border.

Missing is also what is null or empty, a keypoint of visibility null, an area of 0, and a box of zeros.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from personlab.data.json_fields import BadRecordError, integer, number, numbers, shown
from personlab.data.segmentation import bounds, rle_and_area
from personlab.people import Annotation, Box, FloatArray

MARGIN: Final = 1.0
# The area of a person without a mask, as a share of the box: the mean of COCO's people.
MASK_SHARE: Final = 0.53

Array = npt.NDArray[np.float64]


def annotation(
    record: Any, height: int, width: int, names: Sequence[str]
) -> tuple[Annotation, tuple[str, ...]]:
    """The person in a height x width image, and notes on what was inferred.

    Without a segmentation, `rle` is empty. names: of the keypoints, K.

    Raises:
        BadRecordError: the record is not what COCO writes.
    """
    person_id = integer(record, "id", 0, 2**63)
    integer(record, "category_id", 0, 2**63)
    crowd = record.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise BadRecordError(f"iscrowd is {shown(crowd)}, not 0 or 1")
    notes = list[str]()
    keypoints, visibility = _keypoints(record.get("keypoints"), height, width, names, notes)
    segmentation, area, rle = record.get("segmentation"), record.get("area"), b""
    if segmentation not in (None, [], [[]], {}):
        rle, mask_area = rle_and_area(segmentation, height, width)
        area = area or mask_area
    else:
        notes.append("no mask")
    mask, labelled = bounds(rle, height, width) if rle else None, keypoints[visibility > 0]
    box = _box(record.get("bbox"), height, width, mask, labelled, notes)
    if not area:
        area = MASK_SHARE * box[2] * box[3]
        notes.append("area from the box")
    if (area := number({"area": area}, "area")) <= 0:
        raise BadRecordError(f"area is {area:g}")
    person = Annotation(
        id=person_id,
        keypoints=keypoints,
        visibility=visibility,
        imputed=False,
        box=box,
        area=area,
        crowd=bool(crowd),
        rle=rle,
    )
    return person, tuple(notes)


def _keypoints(
    value: Any, height: int, width: int, names: Sequence[str], notes: list[str]
) -> tuple[FloatArray, npt.NDArray[np.int8]]:
    """Positions (K x 2) and visibilities (K); without keypoints (COCO's instances files), all unlabelled."""
    count = len(names)
    if value in (None, []):
        return np.zeros((count, 2), np.float32), np.zeros(count, np.int8)
    triples = numbers(_without_unlabelled(value), "keypoints")
    if len(triples) != 3 * count:
        raise BadRecordError(
            f"keypoints holds {len(triples)} numbers, not {3 * count}: x, y, visibility of {count} keypoints"
        )
    xy, visibility = triples.reshape(count, 3)[:, :2], triples[2::3]
    for name, found in zip(names, visibility, strict=True):
        if found not in (1, 2, 3) and not 0 <= found < 1:
            raise BadRecordError(
                f"the visibility of {name} is {found:g}, not 0 (unlabelled), 1 (hidden) or 2 (visible)"
            )
    if (visibility == 3).any():
        notes.append("visibility 3 is unlabelled")
    if ((visibility > 0) & (visibility < 1)).any():
        notes.append("visibility that is a confidence is visible")
    labelled = (visibility > 0) & (visibility < 3)
    outside = labelled & _outside(xy, height, width).any(axis=1)
    if outside.any():
        k = int(outside.argmax())
        if (outside == labelled).all():
            raise BadRecordError(
                f"all labelled keypoints are outside the image of {width} x {height}: {names[k]} at "
                f"{_text(xy[k])}"
            )
        notes.append("keypoints outside the image are unlabelled")
    labelled = labelled & ~outside
    visibility = np.where(labelled, np.where(visibility < 1, 2, visibility), 0)
    return np.where(labelled[:, None], xy, 0).astype(np.float32), visibility.astype(np.int8)


def _without_unlabelled(value: Any) -> Any:
    """Keypoints as in the file, with zeros for those of visibility 0 or null, whatever their coordinates."""
    if not isinstance(value, list) or len(value) % 3:
        return value
    triples = zip(value[::3], value[1::3], value[2::3], strict=True)
    return [number for x, y, seen in triples for number in ((0, 0, 0) if seen in (0, None) else (x, y, seen))]


def _box(
    value: Any, height: int, width: int, mask: Array | None, labelled: FloatArray, notes: list[str]
) -> Box:
    """The box (x, y, width, height), checked against the mask's (x0, y0, x1, y1) and the labelled keypoints
    (N x 2)."""
    if value in (None, [], [0, 0, 0, 0]):
        if mask is None and not len(labelled):
            raise BadRecordError("has no bbox")
        low, high = (labelled.min(axis=0), labelled.max(axis=0)) if mask is None else np.split(mask, 2)
        low = low.clip(0, np.array([width - 1, height - 1]))
        high = np.maximum(low + 1, high.clip(max=np.array([width, height])))
        value = [*low.tolist(), *(high - low).tolist()]
        notes.append("box from the mask" if mask is not None else "box from the keypoints")
    box = numbers(value, "bbox")
    if len(box) != 4:
        raise BadRecordError(f"bbox holds {len(box)} numbers, not 4: x, y, width, height")
    low, size = np.split(box, 2)
    high = low + size
    if (size.astype(np.float32) <= 0).any():  # tables hold float32
        raise BadRecordError(f"bbox has no area: {size[0]:g} x {size[1]:g}")
    if _outside(np.array([low, high]), height, width).any():
        inside_low, inside_high = low.clip(0), high.clip(max=(width, height))
        if (inside_high - inside_low < size / 2).any():  # half of a side or more is outside
            raise BadRecordError(
                f"bbox {_text(box)} (x, y, width, height) is outside the image of {width} x {height}"
            )
        low, size = inside_low, inside_high - inside_low
        box = np.concatenate((low, size))
        notes.append("box cut off at the image's border")
        high = inside_high
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
