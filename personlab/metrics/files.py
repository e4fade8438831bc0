"""COCO's files to score: annotations and results, checked record by record.

pycocotools believes whatever it is given; here every record that it could stumble over is named.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from personlab.data import coco
from personlab.data.json_fields import BadRecordError, integer, numbers, repeated
from personlab.data.segmentation import rle
from personlab.errors import UserError
from personlab.metrics.coco import PERSON, Task, ground_truth
from personlab.people import Annotation, Detection
from personlab.skeleton import K

log = logging.getLogger("personlab")

Found = dict[int, list[Detection]]


def read_annotations(path: Path) -> COCO:
    """The people of a COCO annotation file, as pycocotools knows them; numbered anew, from 1.

    An annotation that `ingest` would reject is left out, and a log line says so and why.

    Raises:
        UserError: the file is missing, is not JSON or not COCO's; an image's record is not COCO's (which is
            named); no annotation is left.
    """
    records = coco.load_file(path)
    images = _images(path, records.images)
    people, rejects = defaultdict[int, list[Annotation]](list), list[str]()
    repeats = repeated(records.people)
    for position, record in enumerate(records.people):
        try:
            if position in repeats:
                raise BadRecordError(repeats[position])
            person = coco.check_person(record, images)
            people[person.image_id].append(person.annotation)
        except BadRecordError as error:
            rejects.append(f"number {position} of the list: {error}")
    if rejects:
        log.warning("%s: %d annotations left out; %s", path, len(rejects), "; ".join(rejects[:3]))
    if not people:
        raise UserError(f"{path}: annotates no person, so there is nothing to score")
    return ground_truth(_row(image, people[image.id]) for image in images.values())


def _images(path: Path, records: Iterable[Any]) -> dict[int, coco.Image]:
    images = dict[int, coco.Image]()
    for position, record in enumerate(records):
        try:
            height, width = (integer(record, side, 1, 2**31) for side in ("height", "width"))
            image = coco.Image(integer(record, "id", 0, 2**63), "", height, width)
            if image.id in images:
                raise BadRecordError(f"id {image.id} was used before")
        except BadRecordError as error:
            raise UserError(f"{path}: image number {position} of the list: {error}") from None
        images[image.id] = image
    return images


def _row(image: coco.Image, people: Iterable[Annotation]) -> dict[str, Any]:
    persons = [person.to_row(person.visibility > 0) for person in people]
    return {"image_id": image.id, "height": image.height, "width": image.width, "people": persons}


def read_results(path: Path, truth: COCO) -> dict[Task, Found]:
    """COCO results by task, then by image id: people with keypoints, and people with a segmentation.

    A task without any result is left out; of an empty file, keypoints are left. Results of other categories
    than people are left out, and a log line says how many.

    Raises:
        UserError: the file is missing, or is not a JSON list; a result is not what it should be, or of an
            image that `truth` does not have (it is named).
    """
    found: dict[Task, Found] = {"keypoints": defaultdict(list), "segm": defaultdict(list)}
    records = _list(path)
    others = 0
    for position, record in enumerate(records):
        try:
            image = truth.imgs.get(integer(record, "image_id", 0, 2**63))
            if image is None:
                raise BadRecordError(f"image {record['image_id']} is not among the annotated images")
            if integer(record, "category_id", 0, 2**63) != PERSON:
                others += 1
                continue
            for task, detection in _detections(record, image).items():
                found[task][image["id"]].append(detection)
        except BadRecordError as error:
            raise UserError(f"{path}: result number {position} of the list: {error}") from None
    if others:
        log.info("%s: %d results of other categories than people left out", path, others)
    return {task: by_image for task, by_image in found.items() if by_image} or {"keypoints": {}}


def _list(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, list):
        raise UserError(f"{path}: not COCO results, which are a JSON list of {{image_id, category_id, ...}}")
    return content


def _detections(record: Mapping[str, Any], image: Mapping[str, Any]) -> dict[Task, Detection]:
    """The person as each task sees it."""
    score = float(numbers([record.get("score")], "score")[0])
    tasks = dict[Task, Detection]()
    if "keypoints" in record:
        triples = numbers(record["keypoints"], "keypoints")
        if len(triples) != 3 * K:
            raise BadRecordError(f"keypoints holds {len(triples)} numbers, not {3 * K}")
        xy, scores = np.split(triples.reshape(K, 3).astype(np.float32), [2], axis=1)
        tasks["keypoints"] = Detection(xy, scores[:, 0], score, rle=b"")
    if "segmentation" in record:
        nowhere = np.zeros((K, 3), np.float32)
        mask = rle(record["segmentation"], image["height"], image["width"])
        tasks["segm"] = Detection(nowhere[:, :2], nowhere[:, 2], score, rle=mask)
    if not tasks:
        raise BadRecordError("has neither keypoints nor segmentation")
    return tasks
