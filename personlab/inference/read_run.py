"""Read what `predict`, `infer-batch` and the stage `infer` found in annotated images, to be scored."""

import logging
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow.fs import FileType
from pydantic import BaseModel, TypeAdapter, ValidationError

from personlab.data.coco import Image
from personlab.errors import UserError
from personlab.inference.image_ids import AnnotatedImages
from personlab.metrics import files
from personlab.metrics.coco import Task
from personlab.metrics.files import Annotations, Found
from personlab.people import Detection
from personlab.tables import shards
from personlab.utils import storage
from personlab.utils.storage import Folder

log = logging.getLogger("personlab")

Row = dict[str, Any]


def read(place: str, annotations: Annotations) -> dict[Task, Found]:
    """The people found in annotated images by task, then by image id; only tasks that can be scored.

    Args:
        place: path of COCO results, or of the folder of `predict --format coco`; path or URI of a run of
            `infer-batch`; or path of data/infer.

    Raises:
        UserError: as `files.read_results`, `check_images`, `read_run`, `shards.detections` and
            `files.scorable`.
    """
    if storage.kind(place) != FileType.Directory:
        tasks = _read_results(Path(place), annotations)
    elif Path(place, "results.json").is_file():  # of `predict`
        tasks = _read_results(Path(place, "results.json"), annotations)
    elif Path(place, "model.safetensors").is_file():  # `infer` puts the model beside its predictions
        images = {number: asdict(image) for number, image in annotations.images.items()}
        tasks = _by_task(shards.detections(Path(place), images, "the annotations"))
    else:
        tasks = read_run(Folder(place), annotations)
    return files.scorable(tasks, annotations)


def _read_results(path: Path, annotations: Annotations) -> dict[Task, Found]:
    check_images(path, annotations)
    tasks = files.read_results(path, annotations)
    seen = set().union(*tasks.values())
    if missing := len(annotations.images.keys() - seen):
        message = "%s: %d of %d annotated images have no results and count as images without people"
        log.info(message, path, missing, len(annotations.images))
    return tasks


def read_run(run: Folder, annotations: Annotations) -> dict[Task, Found]:
    """The people of a run of `infer-batch` by task, then by image id, as `files.read_results`.

    The run's images are matched to the annotated ones by file name. Images that could not be read count as
    images without people, and a log line counts them; images that are not annotated do not count.

    Raises:
        UserError: the run is not finished, lacks annotated images, or has one in another size or orientation.
    """
    if "manifest.json" not in run.files():
        raise UserError(
            f"{run.place}: holds neither results.json, which 'personlab predict --format coco' writes, nor a "
            "finished run of 'personlab infer-batch', which the same command resumes"
        )
    ids = {_composed(image.file_name): image.id for image in annotations.images.values()}
    rows, unread = (
        {ids[name]: row for row in _rows(run, kind) if (name := _composed(row["image"])) in ids}
        for kind in ("part-", "errors-")
    )
    if missing := annotations.images.keys() - rows.keys() - unread.keys():
        first = annotations.images[min(missing)]
        raise UserError(
            f"{run.place}: lacks {len(missing)} annotated images, first {first.id} ({first.file_name}); "
            "the run has to be of the folder that the annotations' file names are relative to"
        )
    if unread:
        message = "%s: %d annotated images could not be read and count as images without people"
        log.warning(message, run.place, len(unread))
    advice = "infer-batch turns images as their EXIF orientation says: turn the files and annotate these"
    for image_id, row in rows.items():
        size, orientation = (row["height"], row["width"]), row.get("orientation", 1)  # not of versions to 0.2
        _check_pixels(f"{run.place}: {row['image']}", size, orientation, annotations.images[image_id], advice)
    return _by_task(
        {image_id: list(map(Detection.from_row, row["people"])) for image_id, row in rows.items()}
    )


def _by_task(people: Found) -> dict[Task, Found]:
    masks = any(person.rle for found in people.values() for person in found)
    return {"keypoints": people, "segm": people} if masks else {"keypoints": people}


def _composed(name: str) -> str:
    """A file name in composed Unicode: macOS decomposes accents."""
    return unicodedata.normalize("NFC", name)


def _rows(run: Folder, kind: str) -> Iterator[Row]:
    """The rows of the run's files whose names begin with `kind`, in order."""
    for name in sorted(name for name in run.files() if name.startswith(kind)):
        with run.open(name) as file:
            yield from pq.read_table(file).to_pylist()


def _check_pixels(what: str, size: tuple[int, int], orientation: int, image: Image, advice: str) -> None:
    """orientation: EXIF's, as which the predicted image was turned."""
    annotated = image.height, image.width
    if size != annotated:
        raise UserError(f"{what} is {size} pixels (height, width), annotated as {annotated}; {advice}")
    if replace(image, orientation=orientation).orientation_is_unclear:
        raise UserError(
            f"{what} was turned as its EXIF orientation, {orientation}, says, and annotations mean the "
            f"pixels as stored; {advice}"
        )


def check_images(results: Path, annotations: Annotations) -> None:
    """Compare the images.json that `predict` writes beside its results, if it is there, with the annotations.

    Images whose file name either does not know, or that are not annotated, are not compared.

    Raises:
        UserError: an image has another id, file name, size or orientation in the annotations.
    """
    known = AnnotatedImages.of("the annotations", annotations.person, annotations.images.values())
    advice = "'personlab predict --annotations FILE' applies EXIF orientation as these do"
    for record in _image_records(results.with_name("images.json")):
        number, name = record.id, record.file_name
        image, candidates = annotations.images.get(number), known.candidates(name)
        if (image and not image.file_name) or not (image or candidates):
            continue  # a name is unknown, or the image is not annotated
        if image not in candidates:
            raise UserError(
                f"{results}: image {number} is {name} (images.json), but "
                f"{image.file_name if image else 'missing'} in the annotations; 'personlab predict "
                "--annotations FILE' gives images the ids of the annotations"
            )
        size = record.height, record.width
        _check_pixels(f"{results}: image {number}, {name},", size, record.orientation, image, advice)


class _ImageRecord(BaseModel):
    """What results.image_record makes."""

    id: int
    file_name: str
    height: int
    width: int
    orientation: int = 1


def _image_records(path: Path) -> list[_ImageRecord]:
    """The records of an images.json; none if there is no such file or it is not of `predict`."""
    try:
        return TypeAdapter(list[_ImageRecord]).validate_json(path.read_bytes(), strict=True)
    except (OSError, ValidationError):
        return []
