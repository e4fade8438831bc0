"""The three ways COCO writes a mask, as one: compressed run lengths over the whole image.

Polygons, run lengths as numbers, and run lengths as a compressed string. pycocotools believes whatever it is
given (it reads uninitialised memory where run lengths do not add up), so everything is checked first.
"""

from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from personlab.data.json_fields import BadRecordError, numbers


def rle_and_area(segmentation: Any, height: int, width: int) -> tuple[bytes, float]:
    """Any of the three as COCO's compressed run-length string over the image, and the pixels it covers.

    Raises:
        BadRecordError: it is none of the three, does not fit the image, or covers nothing.
    """
    counts = rle(segmentation, height, width)
    area = float(mask_api.area({"size": [height, width], "counts": counts}))
    if area == 0:
        raise BadRecordError("its mask is empty")
    return counts, area


def rle(segmentation: Any, height: int, width: int) -> bytes:
    """Any of the three as COCO's compressed run-length string over the image; run lengths may cover nothing.

    Raises:
        BadRecordError: it is none of the three, or does not fit the image.
    """
    if isinstance(segmentation, list):
        mask = _polygons(segmentation, height, width)
    elif isinstance(segmentation, dict):
        mask = _run_lengths(segmentation, height, width)
    else:
        raise BadRecordError("has no segmentation")
    counts: bytes = mask["counts"]
    return counts


def _polygons(polygons: list[Any], height: int, width: int) -> Any:
    points = [numbers(polygon, "a polygon") for polygon in polygons]
    if any(len(polygon) % 2 for polygon in points):
        raise BadRecordError("a polygon holds an odd number of coordinates")
    drawn = [polygon for polygon in points if len(polygon) >= 6]
    if not drawn:
        raise BadRecordError("its polygons are empty")
    # The rasteriser walks every pixel of the outline: coordinates without bound would never end.
    size = np.array([width, height])
    for xy in (polygon.reshape(-1, 2) for polygon in drawn):
        if ((xy < -size) | (xy > 2 * size)).any():
            raise BadRecordError(f"a polygon is far outside the image of {width} x {height}")
    return mask_api.merge(mask_api.frPyObjects([polygon.tolist() for polygon in drawn], height, width))


def _run_lengths(segmentation: dict[str, Any], height: int, width: int) -> Any:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise BadRecordError(f"its mask is of size {size}, the image of {[height, width]}")
    runs = _decompress(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise BadRecordError("its mask's counts are not run lengths")
    if sum(runs) != height * width:
        raise BadRecordError(f"its mask's run lengths add up to {sum(runs)} pixels, not {height * width}")
    return mask_api.frPyObjects({"size": size, "counts": runs}, height, width)


def _decompress(counts: str) -> list[int]:
    """Run lengths of COCO's compressed string.

    Five bits a character, low bits first, from "0" up; bit 5 says that the number goes on, bit 4 of its last
    character is the sign. From the fourth on, a number is the difference to the one two before.
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
