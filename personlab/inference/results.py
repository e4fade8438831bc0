"""The people of images in the formats of `predict`.

- `json`: one file an image, keypoints by name.
- `coco`: COCO results of all images, which `personlab score` and other COCO tools read.
- `coco-dataset`: a COCO annotation file of all images, which annotation tools open.
- `parquet`: one table of all images (tables.PREDICTIONS).

Coordinates are COCO's (x, y), in pixels of the image as it was read. A person without a mask, as networks
without mask heads find them, has no `segmentation`.
"""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle_tools

from personlab.metrics.coco import PERSON
from personlab.people import SHOWN, SHOWN_KEYPOINT, BoolArray, Detection
from personlab.skeleton import Skeleton

Record = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """The people of one image, best first."""

    image_id: int
    file_name: str
    height: int
    width: int
    people: Sequence[Detection]
    skeleton: Skeleton
    orientation: int = 1  # EXIF's, as which the image was turned
    min_score: float = SHOWN

    @property
    def shown(self) -> list[Detection]:
        """The people with scores of at least `min_score`."""
        return [person for person in self.people if person.score >= self.min_score]


def image_record(result: Result) -> Record:
    """The image as in COCO annotation files, and the EXIF orientation as which it was turned."""
    size = {"height": result.height, "width": result.width}
    turned = {"orientation": result.orientation} if result.orientation > 1 else {}
    return {"id": result.image_id, "file_name": result.file_name, **size, **turned}


def named_record(result: Result) -> Record:
    """The image and its people, keypoints by name."""
    return image_record(result) | {"people": [_named(result, person) for person in result.people]}


def coco_records(result: Result, category: int = PERSON) -> list[Record]:
    """COCO results: a record for each person, with keypoints as (x, y, score)."""
    return [_coco(result, person, category) for person in result.people]


def coco_dataset(results: Sequence[Result], category: int = PERSON, *, skeleton: Skeleton) -> Record:
    """A COCO annotation file of the people that are shown, as annotation tools expect it.

    File names are relative to the images' common folder; masks are polygons; people without a mask have no
    `segmentation`.
    """
    people = [(result, person) for result in results for person in result.shown]
    paths = [posixpath.abspath(result.file_name) for result in results]
    folder = posixpath.commonpath(map(posixpath.dirname, paths)) if paths else ""
    links = [[start + 1, end + 1] for start, end in skeleton.tree]
    person_category = {
        **{"id": category, "name": skeleton.name, "supercategory": skeleton.name},
        **{"keypoints": list(skeleton.keypoints), "skeleton": links},
    }
    return {
        "images": [
            image_record(result) | {"file_name": posixpath.relpath(path, folder)}
            for result, path in zip(results, paths, strict=True)
        ],
        "annotations": [
            {"id": number, **_annotation(result, person, category)}
            for number, (result, person) in enumerate(people, start=1)
        ],
        "categories": [person_category],
    }


def prediction_row(result: Result) -> Record:
    """A row of tables.PREDICTIONS."""
    people = [person.to_row() for person in result.people]
    return {"image_id": result.image_id, "height": result.height, "width": result.width, "people": people}


def frame_record(result: Result, milliseconds: float) -> Record:
    """A frame of a video, at its time, and its people, keypoints by name."""
    return {"milliseconds": round(milliseconds, 3), **named_record(result)}


def frame_row(result: Result, milliseconds: float) -> Record:
    """A row of tables.FRAMES."""
    return {"milliseconds": milliseconds, **prediction_row(result)}


def _named(result: Result, person: Detection) -> Record:
    triples = zip(result.skeleton.keypoints, _triples(person), strict=True)
    keypoints = {name: {"x": x, "y": y, "score": score} for name, (x, y, score) in triples}
    return {"score": _score(person.score), "keypoints": keypoints, **_extent(result, person)}


def _coco(result: Result, person: Detection, category: int) -> Record:
    return {
        "image_id": result.image_id,
        "category_id": category,
        "score": _score(person.score),
        "keypoints": [number for triple in _triples(person) for number in triple],
        **_extent(result, person),
    }


def _annotation(result: Result, person: Detection, category: int) -> Record:
    """COCO's annotation: keypoints as (x, y, 2), or zeros where their score is below SHOWN_KEYPOINT."""
    record = _coco(result, person, category)
    triples = [(x, y, 2) if score >= SHOWN_KEYPOINT else (0, 0, 0) for x, y, score in _triples(person)]
    mask = record.pop("segmentation", None)
    polygons = _polygons(rle_tools.decode(mask)) if mask else []
    return record | {
        "keypoints": [number for triple in triples for number in triple],
        "num_keypoints": sum(v > 0 for _, _, v in triples),
        "area": float(rle_tools.area(mask)) if polygons else round(record["bbox"][2] * record["bbox"][3], 2),
        "iscrowd": 0,
        **({"segmentation": polygons} if polygons else {}),
    }


def _polygons(mask: BoolArray) -> list[list[float]]:
    """The outlines of a mask, the largest first, since some tools read only the first; holes are filled."""
    # outlines go through pixel centres, then a quarter of a pixel inside the mask
    fine = mask.repeat(2, axis=0).repeat(2, axis=1)
    outlines, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = sorted(outlines, key=cv2.contourArea, reverse=True)
    return [((outline.reshape(-1) + 0.5) / 2).tolist() for outline in outlines]


def _triples(person: Detection) -> list[tuple[float, float, float]]:
    return [
        (round(float(x), 2), round(float(y), 2), _score(score))
        for (x, y), score in zip(person.keypoints, person.keypoint_scores, strict=True)
    ]


def _score(score: float | np.floating[Any]) -> float:
    return round(float(score), 6)


def _extent(result: Result, person: Detection) -> Record:
    """The tight box (x, y, width, height) of the mask, or else of the keypoints; the mask, if any."""
    mask = {"size": [result.height, result.width], "counts": person.rle}
    if person.rle and rle_tools.area(mask):
        box = rle_tools.toBbox(mask)
    else:
        low, high = person.keypoints.min(axis=0), person.keypoints.max(axis=0)
        box = np.concatenate((low, high - low))
    extent = {"bbox": [round(float(side), 2) for side in box]}
    if not person.rle:
        return extent
    return extent | {"segmentation": mask | {"counts": person.rle.decode()}}
