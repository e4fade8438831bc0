"""What a batch inference found in annotated pictures, to be scored as anybody's results are."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pycocotools.coco import COCO

from personlab.data import coco
from personlab.errors import UserError
from personlab.metrics.coco import Task
from personlab.metrics.files import Found
from personlab.people import Detection
from personlab.utils.storage import Folder

log = logging.getLogger("personlab")

Row = dict[str, Any]


def read_run(run: Folder, annotations: Path, truth: COCO) -> dict[Task, Found]:
    """The people of a run of `personlab infer-batch` by task, then by image id, as `files.read_results`.

    An annotated image is the picture that the run calls by its `file_name`. In one that could not be read
    nobody was found, and a log line says of how many. Other pictures than the annotated ones do not count.

    Args:
        truth: the people of `annotations`, as `files.read_annotations` reads them.

    Raises:
        UserError: the run is not finished, lacks annotated images, or saw one in another size.
    """
    if "manifest.json" not in run.files():
        raise UserError(
            f"{run.place}: no finished run; 'personlab infer-batch' makes one, or goes on with it"
        )
    ids = {record.get("file_name"): record["id"] for record in coco.load_file(annotations).images}
    rows, unread = (
        {ids[row["image"]]: row for row in _rows(run, kind) if row["image"] in ids}
        for kind in ("part-", "errors-")
    )
    if missing := truth.imgs.keys() - rows.keys() - unread.keys():
        raise UserError(
            f"{run.place}: lacks {len(missing)} of the images of {annotations}, image {min(missing)} first; "
            "the run has to be of the folder that their file names are relative to"
        )
    if unread:
        log.warning(
            "%s: %d annotated images could not be read: nobody was found there", run.place, len(unread)
        )
    people = {image_id: _people(run, row, truth.imgs[image_id]) for image_id, row in rows.items()}
    masks = any(person.rle for found in people.values() for person in found)
    return {"keypoints": people, "segm": people} if masks else {"keypoints": people}


def _rows(run: Folder, kind: str) -> Iterator[Row]:
    """The rows of the run's files whose names begin with `kind`, in order."""
    for name in sorted(name for name in run.files() if name.startswith(kind)):
        with run.open(name) as file:
            yield from pq.read_table(file).to_pylist()


def _people(run: Folder, row: Row, image: Row) -> list[Detection]:
    size, annotated = ((each["height"], each["width"]) for each in (row, image))
    if size != annotated:
        raise UserError(
            f"{run.place}: {row['image']} is {size} pixels (height, width), annotated as {annotated}; "
            "annotate the pictures as they are shown"
        )
    return [Detection.from_row(record) for record in row["people"]]
