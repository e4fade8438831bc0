"""Many pictures -> results and overlays in one folder, whatever state the pictures are in."""

import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from personlab import tables, viz
from personlab.data import images as picture
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.inference import results
from personlab.inference.pictures import Picture
from personlab.inference.results import Result
from personlab.predictor import Predictor
from personlab.utils.files import write_atomic
from personlab.utils.progress import Tracker

log = logging.getLogger("personlab")

Format = Literal["json", "coco", "parquet"]

# Who is less sure than this is in the results, but not in the overlays.
SHOWN: Final = 0.2


@dataclass(frozen=True)
class Unread:
    """A picture that could not be read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Output:
    """A folder to write to, and how.

    overlays/<name>.jpg for each picture, and by `form`

    - json: <name>.json for each picture (results.named_record)
    - coco: results.json with everybody (results.coco_records)
    - parquet: predictions.parquet (tables.PREDICTIONS)

    The last two have images.json beside them, which says which picture has which id.
    """

    folder: Path
    form: Format
    params_hash: str  # recorded in tables

    def overlay(self, item: Picture) -> Path:
        return self.folder / "overlays" / f"{item.name}.jpg"

    def write_one(self, item: Picture, overlay: ImageArray, result: Result) -> None:
        """What is written for each picture."""
        write_atomic(self.overlay(item), viz.jpeg(overlay))
        if self.form == "json":
            _write_json(self.folder / f"{item.name}.json", results.named_record(result))

    def write_all(self, found: Sequence[Result]) -> None:
        """What is written for all pictures together."""
        if self.form == "json":
            return
        _write_records(self.folder / "images.json", map(results.image_record, found))
        if self.form == "coco":
            people = chain.from_iterable(map(results.coco_records, found))
            _write_records(self.folder / "results.json", people)
        else:
            rows = [results.prediction_row(result) for result in sorted(found, key=lambda r: r.image_id)]
            table = pa.Table.from_pylist(rows, schema=tables.PREDICTIONS)
            tables.write_table(table, self.folder / "predictions.parquet", params_hash=self.params_hash)


def predict(
    predictor: Predictor, pictures: Sequence[Picture], output: Output, *, progress: Tracker
) -> list[Unread]:
    """Find and draw the people of every picture. What cannot be read is returned, and does not stop the rest.

    Raises:
        UserError: `output.folder` cannot be written to, or an overlay would replace a picture.
    """
    _check_apart(pictures, output)
    start = time.monotonic()
    found, unread = list[Result](), list[Unread]()
    try:
        for item in progress(pictures, label="predict"):
            try:
                image = picture.read(item.path)
            except UserError as error:
                unread.append(Unread(item.path, str(error)))
                continue
            height, width = image.shape[:2]
            result = Result(item.id, item.path, height, width, predictor(image))
            output.write_one(item, draw(image, result), result)
            found.append(result)
        output.write_all(found)
    except OSError as error:
        raise UserError(f"{error.filename or output.folder}: cannot be written ({error.strerror})") from None
    _log(len(pictures), found, time.monotonic() - start)
    return unread


def draw(image: ImageArray, result: Result) -> ImageArray:
    """The picture with the people who are sure enough, and how sure."""
    people = [person for person in result.people if person.score >= SHOWN]
    return viz.draw_scores(viz.draw_people(image, people), people)


def _check_apart(pictures: Sequence[Picture], output: Output) -> None:
    inputs = {os.path.realpath(item.path) for item in pictures}
    for item in pictures:
        if os.path.realpath(output.overlay(item)) in inputs:
            raise UserError(
                f"{output.overlay(item)}: an overlay would replace this picture; choose another --out"
            )


def _log(pictures: int, found: Sequence[Result], seconds: float) -> None:
    people = sum(person.score >= SHOWN for result in found for person in result.people)
    log.info(
        "predict: %d pictures in = %d predicted + %d not read, %d people; %.2f pictures/s",
        *(pictures, len(found), pictures - len(found), people, len(found) / max(seconds, 1e-9)),
    )


def _write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _write_records(path: Path, records: Iterable[Any]) -> None:
    """A JSON list, a record a line."""
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    write_atomic(path, f"[\n{lines}\n]\n")
