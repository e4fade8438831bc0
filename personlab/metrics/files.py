"""COCO files to score: annotations and results, checked record by record.

pycocotools trusts its input; here every record that it would misread is an error that names it.
"""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from personlab import params
from personlab.data import category, coco, units
from personlab.data.json_fields import BadRecordError, integer, number, numbers, repeated, whole
from personlab.data.segmentation import rle
from personlab.errors import UserError, about
from personlab.metrics.coco import PERSON, Task, ground_truth, has_masks
from personlab.people import Annotation, Detection
from personlab.skeleton import Skeleton

log = logging.getLogger("personlab")

Found = dict[int, list[Detection]]


@dataclass(frozen=True)
class Annotations:
    """A COCO annotation file.

    truth: its people, numbered anew from 1, in category 1.
    skeleton: their keypoints.
    people: the file's ids of their category, or of several that share their keypoints.
    categories: the names of the file's categories, by id.
    """

    truth: COCO
    skeleton: Skeleton
    images: dict[int, coco.Image]
    people: tuple[int, ...]
    categories: dict[int, str]

    @property
    def person(self) -> int:
        return self.people[0]


def read_annotations(
    path: Path, wanted: Sequence[str] = (), given: params.Skeleton | None = None
) -> Annotations:
    """Read a COCO annotation file.

    Args:
        wanted: names of categories, instead of the default (`data/category.py`).
        given: parts of the skeleton, instead of the file's.

    Annotations that `ingest` would reject are left out, except for a box, which is not needed. People without
    a mask that can be read count for keypoints only. A log line gives the number and the first reasons of
    each.

    Raises:
        UserError: the file is missing, is not JSON or not COCO's; an image's record is not COCO's (it is
            named); most coordinates are fractions of the image; no annotation is left.
    """
    records = coco.load(path, wanted)
    images = coco.images_of(path, records.images)
    _check_units(path, records.people)
    people, rejects, maskless = defaultdict[int, list[Annotation]](list), list[str](), list[str]()
    repeats = repeated(records.people)
    for position, record in enumerate(records.people):
        try:
            if position in repeats:
                raise BadRecordError(repeats[position])
            person, fault = _person(record, images, records.category.keypoints)
        except BadRecordError as error:
            rejects.append(f"number {position} of the list: {error}")
            continue
        people[person.image_id].append(person.annotation)
        if not person.annotation.rle:
            maskless.append(f"number {position} of the list: {fault}")
    if not people:
        raise UserError(f"{path}: {_none(records, rejects)}")
    _warn(path, "annotations left out", rejects)
    _warn(path, "people without a mask count for keypoints only", maskless)
    with about(path):
        skeleton = category.skeleton(records.category, [p for each in people.values() for p in each], given)
    truth = ground_truth((_row(image, people[image.id]) for image in images.values()), skeleton)
    return Annotations(truth, skeleton, images, records.category.ids, records.categories)


def _person(record: Any, images: Mapping[int, coco.Image], names: Sequence[str]) -> tuple[coco.Person, str]:
    """The person, if need be without box or mask, and the reason why, or why there is no mask."""
    try:
        return coco.check_person(record, images, names), "has no segmentation"
    except BadRecordError as error:
        for unneeded in (("bbox",), ("segmentation",), ("bbox", "segmentation")):
            with suppress(BadRecordError, TypeError):  # not an object
                return coco.check_person(record | dict.fromkeys(unneeded), images, names), str(error)
        raise


def _none(records: coco.Records, rejects: list[str]) -> str:
    if rejects:
        return f"none of its {len(rejects)} people can be scored: {_first(rejects)}"
    if records.others:
        return (
            f"none of its {records.others} annotations is of category {records.category.ids[0]}, which is "
            f"{records.category.name}"
        )
    return "annotates no person, so there is nothing to score"


def _warn(path: Path, what: str, reasons: list[str]) -> None:
    if reasons:
        log.warning("%s: %d %s; %s", path, len(reasons), what, _first(reasons))


def _first(reasons: list[str]) -> str:
    return "; ".join(reasons[:3])


def _row(image: coco.Image, people: Iterable[Annotation]) -> dict[str, Any]:
    persons = [person.to_row(person.visibility > 0) for person in people]
    return {"image_id": image.id, "height": image.height, "width": image.width, "people": persons}


def read_results(path: Path, annotations: Annotations) -> dict[Task, Found]:
    """COCO results by task, then by image id: people with keypoints, and people with a segmentation.

    A task without any result is left out; of an empty file, keypoints are left. Results of other categories
    than people are left out, and a log line counts them.

    Raises:
        UserError: the file is missing, or is not a JSON list; most coordinates are fractions of the image;
            a result is not COCO's, or its image is not annotated (it is named); no result is of a person, and
            some are of categories unknown to the annotations.
    """
    found: dict[Task, Found] = {"keypoints": defaultdict(list), "segm": defaultdict(list)}
    records = _list(path)
    _check_units(path, records)
    people = _people_categories(records, annotations)
    count = len(annotations.skeleton.keypoints)
    others = Counter[int]()
    for position, record in enumerate(records):
        try:
            image = annotations.images.get(integer(record, "image_id", 0, 2**63))
            if image is None:
                raise BadRecordError(f"image {record['image_id']} is not among the annotated images")
            category = integer(record, "category_id", 0, 2**63)
            if category not in people:
                others[category] += 1
                continue
            for task, detection in _detections(record, image, count).items():
                found[task][image.id].append(detection)
        except BadRecordError as error:
            raise UserError(f"{path}: result number {position} of the list: {error}") from None
    if others:
        names = ", ".join(_category(number, annotations) for number in sorted(others)[:5])
        if others.total() == len(records) and others.keys() - annotations.categories.keys():
            raise UserError(
                f"{path}: people are annotated as category {_category(annotations.person, annotations)}; no "
                f"result is of it, all are of {names}"
            )
        log.info("%s: %d results of other categories than people left out: %s", path, others.total(), names)
    return {task: by_image for task, by_image in found.items() if by_image} or {"keypoints": {}}


def _check_units(path: Path, records: Sequence[Any]) -> None:
    if fault := units.fractions(records, ("keypoints", "segmentation")):  # boxes are not needed
        raise UserError(f"{path}: {fault}")


def _people_categories(records: Iterable[Any], annotations: Annotations) -> tuple[int, ...]:
    """The categories of people in results: the annotations', or COCO's if used and free there."""
    used = {whole(record.get("category_id")) for record in records if isinstance(record, dict)}
    coco_is_free = PERSON in used and PERSON not in annotations.categories
    return (PERSON,) if coco_is_free and used.isdisjoint(annotations.people) else annotations.people


def _category(number: int, annotations: Annotations) -> str:
    return f"{number} ({annotations.categories.get(number, 'unknown')})"


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


def _detections(record: Mapping[str, Any], image: coco.Image, count: int) -> dict[Task, Detection]:
    """The person as each task takes it. count: of keypoints."""
    score = number(record, "score")
    tasks = dict[Task, Detection]()
    if record.get("keypoints") not in (None, []):
        triples = numbers(record["keypoints"], "keypoints")
        if len(triples) != 3 * count:
            raise BadRecordError(
                f"keypoints holds {len(triples)} numbers, not {3 * count}, three for each of {count}"
            )
        xy, scores = np.split(triples.reshape(count, 3).astype(np.float32), [2], axis=1)
        tasks["keypoints"] = Detection(xy, scores[:, 0], score, rle=b"")
    if record.get("segmentation") not in (None, []):
        nowhere = np.zeros((count, 3), np.float32)
        mask = rle(record["segmentation"], image.height, image.width)
        tasks["segm"] = Detection(nowhere[:, :2], nowhere[:, 2], score, rle=mask)
    if not tasks:
        raise BadRecordError("has neither keypoints nor segmentation")
    return tasks


def scorable(tasks: dict[Task, Found], annotations: Annotations) -> dict[Task, Found]:
    """The tasks that the annotations can score: all, or keypoints alone where no annotated person has a mask.

    Raises:
        UserError: there are masks alone to score, and none annotated.
    """
    if "segm" not in tasks or has_masks(annotations.truth):
        return tasks
    if "keypoints" not in tasks:
        raise UserError("the results are masks without keypoints, and no annotated person has a mask")
    log.warning("masks are not scored: no annotated person has one")
    return {"keypoints": tasks["keypoints"]}
