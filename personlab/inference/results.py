"""What was found in pictures, in the three forms that people take away.

- `json`: one file a picture, for reading by people and small programs: keypoints by name.
- `coco`: one file of COCO results over all pictures, as `personlab score` and every COCO tool read it.
- `parquet`: one table over all pictures (tables.PREDICTIONS).

Coordinates are pixels of the picture as it is shown, (x, y), COCO's. A person without a mask, as networks
without mask heads find them, has no `segmentation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

from personlab.metrics.coco import PERSON
from personlab.people import Detection
from personlab.skeleton import KEYPOINTS

Record = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """The people found in one picture, best first."""

    image_id: int
    path: Path
    height: int
    width: int
    people: Sequence[Detection]


def image_record(result: Result) -> Record:
    """The picture as COCO's annotation files list it."""
    return {
        "id": result.image_id,
        "file_name": str(result.path),
        "height": result.height,
        "width": result.width,
    }


def named_record(result: Result) -> Record:
    """The picture and its people, keypoints by name."""
    return image_record(result) | {"people": [_named(result, person) for person in result.people]}


def coco_records(result: Result) -> list[Record]:
    """COCO results: a record for each person, a keypoint's third number its score."""
    return [_coco(result, person) for person in result.people]


def prediction_row(result: Result) -> Record:
    """A row of tables.PREDICTIONS."""
    people = [person.to_row() for person in result.people]
    return {"image_id": result.image_id, "height": result.height, "width": result.width, "people": people}


def _named(result: Result, person: Detection) -> Record:
    keypoints = {
        name: {"x": x, "y": y, "score": score}
        for name, (x, y, score) in zip(KEYPOINTS, _triples(person), strict=True)
    }
    return {"score": _score(person.score), "keypoints": keypoints, **_extent(result, person)}


def _coco(result: Result, person: Detection) -> Record:
    return {
        "image_id": result.image_id,
        "category_id": PERSON,
        "score": _score(person.score),
        "keypoints": [number for triple in _triples(person) for number in triple],
        **_extent(result, person),
    }


def _triples(person: Detection) -> list[tuple[float, float, float]]:
    return [
        (round(float(x), 2), round(float(y), 2), _score(score))
        for (x, y), score in zip(person.keypoints, person.keypoint_scores, strict=True)
    ]


def _score(score: float | np.floating[Any]) -> float:
    return round(float(score), 6)


def _extent(result: Result, person: Detection) -> Record:
    """The tight box (x, y, width, height) of the mask, or else of the keypoints; and the mask, if any."""
    mask = {"size": [result.height, result.width], "counts": person.rle}
    if person.rle and rle_tools.area(mask):
        box = rle_tools.toBbox(mask)
    else:
        low, high = person.keypoints.min(axis=0), person.keypoints.max(axis=0)
        box = np.concatenate((low, high - low))
    extent = {"bbox": [round(float(side), 2) for side in box]}
    return extent | ({"segmentation": mask | {"counts": person.rle.decode()}} if person.rle else {})
