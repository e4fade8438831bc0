"""Predict images on one machine and write the results and overlays to a folder."""

import json
import logging
import os
import posixpath
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from personlab import tables, viz
from personlab.data import coco, images
from personlab.data.transform import ImageArray
from personlab.errors import UserError
from personlab.inference import results
from personlab.inference.image_ids import AnnotatedImages, number_images
from personlab.inference.listing import Fetch, Listing
from personlab.inference.results import Result
from personlab.metrics.coco import PERSON
from personlab.people import SHOWN
from personlab.predictor import Predictor, side_by_side
from personlab.skeleton import Skeleton
from personlab.utils import storage
from personlab.utils.files import write_atomic, write_json
from personlab.utils.prefetch import prefetch
from personlab.utils.progress import Tracker

log = logging.getLogger("personlab")

Format = Literal["json", "coco", "coco-dataset", "parquet"]

_LONGEST_STEM: Final = 50  # characters of up to 4 bytes: file systems allow 255 bytes, suffixes included


@dataclass(frozen=True)
class Image:
    """An image to predict.

    id: unique within the run.
    stem: name of the files written for it, without suffix; unique within the run, whatever the case.
    annotated: its record in the annotation file that ids are taken from.
    fault: the reason why it has none there.
    """

    path: str  # or URI
    id: int
    stem: str
    annotated: coco.Image | None = None
    fault: str = ""

    @property
    def file_name(self) -> str:
        """The annotation file's, or the path."""
        return self.annotated.file_name if self.annotated else self.path

    def read(self, fetch: Fetch) -> tuple[ImageArray, int]:
        """Read the pixels: as the annotations mean them or, without annotations, as viewers show them.

        Returns:
            The pixels, and the EXIF orientation as which they were turned without annotations.

        Raises:
            UserError: it cannot be read, or is of another size than annotated.
        """
        if self.fault:
            raise UserError(self.fault)
        content = fetch()
        if self.annotated is None:
            return images.decode(content), images.orientation(content)
        return images.decode_annotated(content, self.annotated.height, self.annotated.width), 1


def plan_images(paths: Sequence[str], annotated: AnnotatedImages | None = None) -> list[Image]:
    """The images at paths or URIs; ids are those of the annotation file, or as `number_images` gives them."""
    stems = list(unique_stems(paths))
    if annotated is None:
        return list(map(Image, paths, number_images(paths), stems))
    records = annotated.assign([path if "://" in path else posixpath.abspath(path) for path in paths])
    return [
        Image(path, 0, stem, fault=str(record))
        if isinstance(record, UserError)
        else Image(path, record.id, stem, record)
        for path, stem, record in zip(paths, stems, records, strict=True)
    ]


def unique_stems(paths: Iterable[str]) -> Iterator[str]:
    """File names without folder and suffix, valid on any file system, made unique whatever the case."""
    taken = Counter[str]()
    for path in paths:
        plain = name = safe_stem(path)
        while taken[name.lower()]:
            taken[plain.lower()] += 1
            name = f"{plain}-{taken[plain.lower()]}"
        taken[name.lower()] += 1
        yield name


def safe_stem(path: str) -> str:
    """The file name without folder and suffix, valid on any file system; "x.parquet#17" gives "x_17"."""
    encoding = sys.getfilesystemencoding()
    known = posixpath.basename(path).encode(encoding, errors="replace").decode(encoding)
    name = re.sub(r"\.[^.#]*(#\d+)?$", r"\1", known)
    return re.sub(r"[^\w .()+-]", "_", name).strip(" .")[:_LONGEST_STEM] or "image"


@dataclass(frozen=True)
class Output:
    """Where and how results are written.

    overlays/<stem>.jpg for each image, and by `form`

    - json: <stem>.json for each image (results.named_record)
    - coco: results.json (results.coco_records)
    - coco-dataset: dataset.json (results.coco_dataset)
    - parquet: predictions.parquet (tables.PREDICTIONS)

    coco and parquet have images.json beside them: the file name, id and size of each image.
    """

    folder: Path
    form: Format
    params_hash: str  # recorded in tables
    skeleton: Skeleton
    person: int = PERSON  # category
    min_score: float = SHOWN  # of people that are drawn, counted and in dataset.json

    @property
    def left_out(self) -> tuple[str, ...]:
        """Files and folders that are no images to predict when the folder lies among them."""
        return tuple(str(self.folder / name) for name in ("", "overlays", "predictions.parquet"))

    def overlay(self, image: Image) -> Path:
        return self.folder / "overlays" / f"{image.stem}.jpg"

    def write_one(self, image: Image, overlay: ImageArray, result: Result) -> None:
        """Write the files of one image."""
        write_atomic(self.overlay(image), viz.jpeg(overlay))
        if self.form == "json":
            write_json(self.folder / f"{image.stem}.json", results.named_record(result), indent=1)

    def _dataset(self, predicted: Sequence[Result]) -> Any:
        return results.coco_dataset(predicted, self.person, skeleton=self.skeleton)

    def write_all(self, predicted: Sequence[Result]) -> None:
        """Write the files of all images together."""
        if self.form == "coco-dataset":
            write_json(self.folder / "dataset.json", self._dataset(predicted), indent=1)
        if self.form in ("coco", "parquet"):
            _write_records(self.folder / "images.json", map(results.image_record, predicted))
        if self.form == "coco":
            people = chain.from_iterable(results.coco_records(result, self.person) for result in predicted)
            _write_records(self.folder / "results.json", people)
        if self.form == "parquet":
            rows = [results.prediction_row(result) for result in sorted(predicted, key=lambda r: r.image_id)]
            table = pa.Table.from_pylist(rows, schema=tables.PREDICTIONS)
            tables.write_table(table, self.folder / "predictions.parquet", params_hash=self.params_hash)


def predict(
    predictor: Predictor,
    listings: Sequence[Listing],
    output: Output,
    *,
    annotated: AnnotatedImages | None = None,
    progress: Tracker,
    report: Callable[[str], None],
) -> list[str]:
    """Predict the people of every image and write results and overlays.

    Args:
        annotated: the images of an annotation file; their ids and file names are taken, other images fail.
        report: takes a line about each image that was predicted.

    Returns:
        The images that could not be read, with the reason, as text. They do not stop the others.

    Raises:
        UserError: `output.folder` cannot be written to, or an overlay would replace an image.
    """
    planned = plan_images([path for listing in listings for path in listing.paths()], annotated)
    _check_apart(planned, output)
    fetches = (fetch for listing in listings for _, fetch in listing.read())
    entries, work = zip(planned, fetches, strict=True), partial(_predict_one, predictor, output)
    start = time.monotonic()
    predicted, failures = list[Result](), list[str]()
    try:
        with (
            side_by_side(len(planned)) as threads,
            closing(prefetch(work, entries, threads=threads, depth=threads)) as done,
        ):
            for image, result in progress(done, total=len(planned), label="predict"):
                if isinstance(result, UserError):
                    failures.append(f"{image.path}: {result}")
                    continue
                predicted.append(result)
                report(f"{image.path}: {people_count(len(result.shown))}, {output.overlay(image)}")
        output.write_all(predicted)
    except OSError as error:
        raise UserError(f"{error.filename or output.folder}: cannot be written ({error.strerror})") from None
    _log(len(planned), predicted, output.min_score, time.monotonic() - start)
    return failures


def _predict_one(
    predictor: Predictor, output: Output, entry: tuple[Image, Fetch]
) -> tuple[Image, Result | UserError]:
    """Predict an image and write its files; or the reason why it cannot be read."""
    image, fetch = entry
    try:
        pixels, orientation = image.read(fetch)
    except UserError as error:
        return image, error
    height, width = pixels.shape[:2]
    people = predictor(pixels)
    size, skeleton = (height, width), predictor.skeleton
    result = Result(image.id, image.file_name, *size, people, skeleton, orientation, output.min_score)
    output.write_one(image, draw_still(pixels, result), result)
    return image, result


def people_count(count: int) -> str:
    """E.g. "2 people"."""
    return f"{count} people" if count != 1 else "1 person"


def draw(image: ImageArray, result: Result) -> ImageArray:
    """The image with the people that are shown, and their scores."""
    return viz.draw_scores(viz.draw_people(image, result.shown, result.skeleton), result.shown)


def draw_still(image: ImageArray, result: Result) -> ImageArray:
    """As `draw`; an image without people says so."""
    if not result.shown:
        return viz.draw_note(
            image, f"no {result.skeleton.name} with a score of at least {result.min_score:g}"
        )
    return draw(image, result)


def _check_apart(planned: Sequence[Image], output: Output) -> None:
    inputs = {os.path.realpath(storage.local_path(image.path)) for image in planned}
    for overlay in map(output.overlay, planned):
        if os.path.realpath(overlay) in inputs:
            raise UserError(f"{overlay}: an overlay would replace this image; choose another --out")


def _log(images: int, predicted: Sequence[Result], min_score: float, seconds: float) -> None:
    people, shown = (sum(len(getattr(each, name)) for each in predicted) for name in ("people", "shown"))
    what = f"{images} images" if images != 1 else "1 image"
    log.info(
        f"predict: {what} = {len(predicted)} predicted + {images - len(predicted)} not read; "
        f"{people} proposals, {shown} with a score of at least {min_score:g}; "
        f"{len(predicted) / max(seconds, 1e-9):.2f} images/s"
    )


def _write_records(path: Path, records: Iterable[Any]) -> None:
    """Write a JSON list, one record a line."""
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    write_atomic(path, f"[\n{lines}\n]\n")
