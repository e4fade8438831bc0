"""Find out whether a file's coordinates are of another kind than COCO's, which are pixels, x before y.

A single record does not show it, since any corner may be a size; most records of a file do.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from personlab.data.json_fields import BadRecordError, numbers, whole
from personlab.data.segmentation import bounds, rle_and_area

_SAMPLE: Final = 500  # records, spread over the file
_FRACTION: Final = 1.5  # largest coordinate taken for a fraction of the image

Array = npt.NDArray[np.float64]
Size = tuple[int, int]  # height, width


def fault(records: Sequence[Any], sizes: Mapping[Any, Size]) -> str | None:
    """One sentence on what most annotations have in common that is not COCO's; None if there is nothing.

    Args:
        records: the annotations, unchecked.
        sizes: height and width of each image by id.
    """
    return fractions(records, ("keypoints", "bbox", "segmentation")) or _boxes(_sample(records), sizes)


def fractions(records: Sequence[Any], keys: Sequence[str]) -> str | None:
    """As `fault`, of annotations or results whose coordinates under one of the keys are fractions."""
    coordinates = {"keypoints": _labelled, "bbox": _box, "segmentation": _outline}
    for key in keys:
        found = map(coordinates[key], _sample(records))
        values = [xy for xy in found if xy is not None and xy.any()]
        count = sum(float(np.abs(xy).max()) <= _FRACTION for xy in values)
        if 2 * count > len(values):
            return (
                f"{key} of {count} of {len(values)} people looked at are fractions of the image; "
                "COCO's coordinates are in pixels: multiply x by the image's width and y by its height"
            )
    return None


def _sample(records: Sequence[Any]) -> list[dict[str, Any]]:
    step = -(-len(records) // _SAMPLE) or 1
    return [record for record in records[::step] if isinstance(record, dict)]


def _boxes(records: Sequence[dict[str, Any]], sizes: Mapping[Any, Size]) -> str | None:
    """Compare each reading of a box with the person's mask or, without one, with the image and keypoints."""
    votes = [vote for record in records for vote in _readings(record, sizes)]
    for name in dict.fromkeys(votes):
        if name and 2 * votes.count(name) > len(votes):
            return (
                f"bbox of {votes.count(name)} of {len(votes)} people looked at is {name}; "
                "COCO's is (x, y, width, height), with the top left corner"
            )
    return None


def _readings(record: dict[str, Any], sizes: Mapping[Any, Size]) -> Iterator[str]:
    """The reading of a box that fits clearly best; empty if that is COCO's. Nothing without a box."""
    image_id, box = whole(record.get("image_id")), _box(record)
    if image_id not in sizes or box is None:
        return
    first, second = box[:2], box[2:]
    readings = {
        "": (first, first + second),
        "two corners, (x0, y0, x1, y1)": (first, second),
        "its centre and size, (x, y, width, height)": (first - second / 2, first + second / 2),
        "(y, x, height, width)": (first[::-1], (first + second)[::-1]),
    }
    mask, points = _mask(record, *sizes[image_id]), _labelled(record)
    fits = {name: _fit(*corners, mask, points, sizes[image_id]) for name, corners in readings.items()}
    best = max(fits, key=lambda name: fits[name])
    yield best if fits[best] > 0.7 and fits[""] < 0.5 else ""


def _fit(low: Array, high: Array, mask: Array | None, points: Array | None, size: Size) -> float:
    """How well a box fits: its IoU with the mask's box or, without a mask, its share of the keypoints."""
    if (high <= low).any():
        return 0.0
    if mask is None:
        if (low < -1).any() or (high > np.array(size[::-1]) + 1).any():
            return 0.0
        return 1.0 if points is None else float(((points >= low) & (points <= high)).all(axis=1).mean())
    inner = np.prod((np.minimum(high, mask[2:]) - np.maximum(low, mask[:2])).clip(0))
    return float(inner / (np.prod(high - low) + np.prod(mask[2:] - mask[:2]) - inner))


def _mask(record: dict[str, Any], height: int, width: int) -> Array | None:
    """The tight box of the mask, x0, y0, x1, y1; None without a mask that can be read."""
    try:
        return bounds(rle_and_area(record.get("segmentation"), height, width)[0], height, width)
    except BadRecordError:
        return None


def _labelled(record: dict[str, Any]) -> Array | None:
    """Positions of the labelled keypoints; None if there are none."""
    triples = _numbers(record.get("keypoints"))
    if triples is None or len(triples) % 3:
        return None
    xy = triples.reshape(-1, 3)
    xy = xy[xy[:, 2] != 0, :2]
    return xy if len(xy) else None


def _box(record: dict[str, Any]) -> Array | None:
    box = _numbers(record.get("bbox"))
    return None if box is None or len(box) != 4 else box


def _outline(record: dict[str, Any]) -> Array | None:
    polygons = record.get("segmentation")
    first = polygons[0] if isinstance(polygons, list) and polygons else None
    return _numbers(first if isinstance(first, list) else polygons)


def _numbers(value: Any) -> Array | None:
    try:
        return numbers(value, "") if value else None
    except BadRecordError:
        return None
