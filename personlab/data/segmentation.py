"""COCO segmentations (polygons, run lengths as numbers or as a compressed string) as compressed run lengths.

Everything is checked first: pycocotools reads uninitialised memory if run lengths do not cover the image.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

from personlab.data.json_fields import BadRecordError, numbers, shown


def rle_and_area(segmentation: Any, height: int, width: int) -> tuple[bytes, float]:
    """A segmentation as COCO's compressed run-length string over the image, and its area in pixels.

    Raises:
        BadRecordError: as `rle`, or the mask is empty.
    """
    counts = rle(segmentation, height, width)
    area = float(mask_api.area({"size": [height, width], "counts": counts}))
    if area == 0:
        raise BadRecordError("its mask is empty")
    return counts, area


def rle(segmentation: Any, height: int, width: int) -> bytes:
    """A segmentation as COCO's compressed run-length string over the image.

    Raises:
        BadRecordError: it is not a COCO segmentation, or does not fit the image.
    """
    if isinstance(segmentation, list):
        mask = _polygons(segmentation, height, width)
    elif isinstance(segmentation, dict):
        mask = _run_lengths(segmentation, height, width)
    else:
        raise BadRecordError(f"segmentation is {shown(segmentation)}, neither polygons nor run lengths")
    counts: bytes = mask["counts"]
    return counts


def bounds(counts: bytes, height: int, width: int) -> npt.NDArray[np.float64]:
    """The tight box of a mask, x0, y0, x1, y1, from its compressed run-length string."""
    x, y, w, h = mask_api.toBbox({"size": [height, width], "counts": counts})
    return np.array([x, y, x + w, y + h])


def _polygons(polygons: list[Any], height: int, width: int) -> Any:
    if polygons and not any(isinstance(polygon, list) for polygon in polygons):
        polygons = [polygons]  # one polygon, not in a list of its own (VIA, RectLabel)
    points = [numbers(polygon, "a polygon") for polygon in polygons]
    if odd := [len(polygon) for polygon in points if len(polygon) % 2]:
        raise BadRecordError(f"a polygon holds an odd number of coordinates, {odd[0]}")
    drawn = [polygon for polygon in points if len(polygon) >= 6]
    if not drawn:
        most = max(map(len, points), default=0)
        raise BadRecordError(
            f"its polygons have at most {most} numbers; a polygon has 6 or more: x0, y0, ..."
        )
    # The rasteriser visits every pixel of the outline, so coordinates must be bounded.
    size = np.array([width, height])
    for xy in (polygon.reshape(-1, 2) for polygon in drawn):
        if ((xy < -size) | (xy > 2 * size)).any():
            raise BadRecordError(f"a polygon is far outside the image of {width} x {height}")
    return mask_api.merge(mask_api.frPyObjects([polygon.tolist() for polygon in drawn], height, width))


def _run_lengths(segmentation: dict[str, Any], height: int, width: int) -> Any:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise BadRecordError(
            f"its mask is of size {shown(size)}, the image of {[height, width]} (height, width)"
        )
    runs = _decompress(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise BadRecordError("its mask's counts are not run lengths")
    if sum(runs) != height * width:
        raise BadRecordError(f"its mask's run lengths add up to {sum(runs)} pixels, not {height * width}")
    return mask_api.frPyObjects({"size": size, "counts": runs}, height, width)


def _decompress(counts: str) -> list[int]:
    """Decode COCO's compressed string to run lengths.

    A character holds five bits of a number, low bits first, as an offset from "0"; bit 5 is set if more
    characters follow, and bit 4 of the last one is the sign. From the fourth on, numbers are differences to
    the run length two before.
    """
    runs, value, shift = list[int](), 0, 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise BadRecordError("its mask's counts are not a compressed run-length string")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise BadRecordError("its mask's counts end within a number")
    return runs
