"""Read a COCO layout: annotation JSON and image files to checked images and people, and rejects with reasons.

    root/annotations/person_keypoints_{train,val}2017.json
    root/{train,val}2017/

People with keypoints, people with a mask only, and crowds are kept. Every record becomes an `Image`, a
`Person` or a `Reject` with the reason, in the order of the file; only a file that is not COCO's at all is an
error. Annotations of other categories are counted.

Values are those that COCO's own tools use:
- coordinates refer to the pixels as stored in the file (EXIF orientation is not applied);
- unlabelled keypoints (visibility 0) are (0, 0);
- labelled keypoints and boxes may exceed the image's border by up to `MARGIN` pixels (COCO rounds) and are
  kept as annotated, so that scores equal those of COCO's tools; farther out, the record is rejected;
- polygons with fewer than three points are ignored; an empty mask is rejected.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from personlab.data import images
from personlab.data.json_fields import BadRecordError, integer, numbers, record_id, repeated
from personlab.data.segmentation import rle_and_area
from personlab.errors import UserError
from personlab.people import Annotation, FloatArray
from personlab.skeleton import KEYPOINTS, K
from personlab.tables import PEOPLE, REJECTS, Split

MARGIN: Final = 1.0

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """The files of one split of a COCO layout."""

    root: Path
    split: Split

    @property
    def annotations(self) -> Path:
        return self.root / "annotations" / f"person_keypoints_{self.split}2017.json"

    @property
    def images(self) -> Path:
        return self.root / f"{self.split}2017"


@dataclass(frozen=True)
class Records:
    """The raw records of an annotation file, not looked at yet."""

    images: list[Any]
    people: list[Any]
    others: int  # annotations of other categories


@dataclass(frozen=True)
class Image:
    """An image whose file was decoded and has this size. file_name is relative to the layout's root."""

    id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Person:
    """An annotated person and the image it is in."""

    image_id: int
    annotation: Annotation


@dataclass(frozen=True)
class Reject:
    """A rejected record and the reason."""

    file: str  # annotation file, relative to the layout's root
    record: str  # e.g. "annotation 1234"
    reason: str


def load(layout: Layout) -> Records:
    """Parse the annotation file of a split; as `load_file`."""
    return load_file(layout.annotations)


def load_file(path: Path) -> Records:
    """Parse an annotation file.

    Raises:
        UserError: the file is missing, is not JSON or not COCO's, or has no image or no person category.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; COCO's annotations should be there") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); is it complete? Get it again") from None
    images, annotations, categories = (
        _list_of(path, content, key) for key in ("images", "annotations", "categories")
    )
    person = [c.get("id") for c in categories if isinstance(c, dict) and c.get("name") == "person"]
    if len(person) != 1:
        raise UserError(f"{path}: 'categories' must name 'person' once, not {len(person)} times")
    if not images:
        raise UserError(f"{path}: lists no image; there is nothing to do")
    # An annotation without a category is no other category's: it is looked at, and rejected.
    people = [
        a for a in annotations if not isinstance(a, dict) or a.get("category_id", person[0]) == person[0]
    ]
    return Records(images, people, len(annotations) - len(people))


def _list_of(path: Path, content: Any, key: str) -> list[Any]:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise UserError(f"{path}: no list '{key}' in it; not a COCO annotation file")
    return list(content[key])


# --- images -------------------------------------------------------------------------------------------------


def check_images(layout: Layout, records: Sequence[Any]) -> Iterator[Image | Reject]:
    """Decode every image and compare its size with the record, in threads; in the order of the records."""
    repeats = repeated(records)
    folder = layout.images.resolve()

    def check(position: int) -> Image | Reject:
        record = records[position]
        try:
            if position in repeats:
                raise BadRecordError(repeats[position])
            return _image(layout, folder, record)
        except BadRecordError as error:
            return _reject(layout, "image", position, record, error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(check, range(len(records)))


def _image(layout: Layout, folder: Path, record: Any) -> Image:
    image_id = integer(record, "id", 0, 2**63)
    height, width = integer(record, "height", 1, 2**31), integer(record, "width", 1, 2**31)
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        raise BadRecordError("has no file_name")
    _check_pixels(_inside(folder, name), name, (height, width))
    return Image(image_id, f"{layout.images.name}/{PurePosixPath(name)}", height, width)


def _inside(folder: Path, name: str) -> Path:
    """The file's path, inside the folder even after links are resolved."""
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, an invalid name
        raise BadRecordError(f"file_name '{name}' cannot be resolved ({error})") from None
    if not path.is_relative_to(folder) or ".." in PurePosixPath(name).parts:
        raise BadRecordError(f"file_name '{name}' is outside the image folder")
    return path


def _check_pixels(path: Path, name: str, size: tuple[int, int]) -> None:
    """Decode an image file and compare its (height, width) with the record's."""
    try:
        found = images.read(path, apply_exif=False).shape[:2]
    except UserError as error:
        raise BadRecordError(f"{name}: {error}") from None
    if found != size:
        pixels, stated = (f"{width} x {height}" for height, width in (found, size))
        raise BadRecordError(f"{name} is {pixels} pixels, the annotations say {stated}")


def images_by_id(records: Iterable[Any], checked: Iterable[Image | Reject]) -> dict[int, Image | Reject]:
    """The checked images by id; of a repeated id, the first."""
    by_id = dict[int, Image | Reject]()
    for record, image in zip(records, checked, strict=True):
        image_id = record_id(record)
        if image_id is not None:
            by_id.setdefault(image_id, image)
    return by_id


# --- people -------------------------------------------------------------------------------------------------


def check_people(
    layout: Layout, records: Sequence[Any], images: Mapping[int, Image | Reject]
) -> Iterator[Person | Reject]:
    """Check every person, in the order of the records. People of rejected images are rejected."""
    repeats = repeated(records)
    for position, record in enumerate(records):
        try:
            if position in repeats:
                raise BadRecordError(repeats[position])
            yield check_person(record, images)
        except BadRecordError as error:
            yield _reject(layout, "annotation", position, record, error)


def check_person(record: Any, images: Mapping[int, Image | Reject]) -> Person:
    """A person's record, checked.

    Raises:
        BadRecordError: it is not what COCO writes, or its image is unknown or rejected.
    """
    person_id, image_id = integer(record, "id", 0, 2**63), integer(record, "image_id", 0, 2**63)
    image = images.get(image_id)
    if image is None:
        raise BadRecordError(f"image {image_id} is not among the images")
    if isinstance(image, Reject):
        raise BadRecordError(f"image {image_id} was rejected: {image.reason}")
    if "category_id" not in record:
        raise BadRecordError("has no category_id")
    if record.get("iscrowd", 0) not in (0, 1):
        raise BadRecordError(f"iscrowd is {record['iscrowd']!r}, not 0 or 1")
    keypoints, visibility = _keypoints(record.get("keypoints"), image)
    rle, mask_area = rle_and_area(record.get("segmentation"), image.height, image.width)
    annotation = Annotation(
        id=person_id,
        keypoints=keypoints,
        visibility=visibility,
        imputed=False,
        box=_box(record.get("bbox"), image),
        area=_area(record.get("area", mask_area)),
        crowd=bool(record.get("iscrowd", 0)),
        rle=rle,
    )
    return Person(image_id, annotation)


def _keypoints(value: Any, image: Image) -> tuple[FloatArray, npt.NDArray[np.int8]]:
    """Positions (K x 2) and visibilities (K); all unlabelled without `keypoints` (COCO's instances files)."""
    if value is None:
        return np.zeros((K, 2), np.float32), np.zeros(K, np.int8)
    triples = numbers(value, "keypoints")
    if len(triples) != 3 * K:
        raise BadRecordError(f"keypoints holds {len(triples)} numbers, not {3 * K}")
    xy, visibility = np.split(triples.reshape(K, 3), [2], axis=1)
    visibility = visibility[:, 0]
    if not np.isin(visibility, (0, 1, 2)).all():
        raise BadRecordError("a keypoint's visibility is not 0, 1 or 2")
    labelled = visibility > 0
    outside = labelled & _outside(xy, image).any(axis=1)
    if outside.any():
        k = int(outside.argmax())
        x, y = xy[k]
        raise BadRecordError(f"{KEYPOINTS[k]} at ({x:g}, {y:g}) is {_out_of(image)}")
    return np.where(labelled[:, None], xy, 0).astype(np.float32), visibility.astype(np.int8)


def _box(value: Any, image: Image) -> tuple[float, float, float, float]:
    box = numbers(value, "bbox")
    if len(box) != 4:
        raise BadRecordError(f"bbox holds {len(box)} numbers, not 4")
    x, y, width, height = box.tolist()
    if np.float32(width) <= 0 or np.float32(height) <= 0:  # tables hold float32
        raise BadRecordError(f"bbox has no area: {width:g} x {height:g}")
    if _outside(np.array([[x, y], [x + width, y + height]]), image).any():
        raise BadRecordError(f"bbox ({x:g}, {y:g}, {width:g}, {height:g}) is {_out_of(image)}")
    return x, y, width, height


def _outside(xy: Array, image: Image) -> npt.NDArray[np.bool_]:
    return (xy < -MARGIN) | (xy > np.array([image.width, image.height]) + MARGIN)


def _out_of(image: Image) -> str:
    return f"outside the image of {image.width} x {image.height}"


def _area(value: Any) -> float:
    (area,) = numbers([value], "area")
    if area <= 0:
        raise BadRecordError(f"area is {area:g}")
    return float(area)


def _reject(layout: Layout, kind: str, position: int, record: Any, error: BadRecordError) -> Reject:
    known = record_id(record)
    name = f"{kind} {known}" if known is not None else f"{kind} without id, number {position} of the list"
    reason = str(error).encode(errors="backslashreplace").decode()  # JSON may hold lone surrogates
    return Reject(layout.annotations.relative_to(layout.root).as_posix(), name, reason)


# --- tables -------------------------------------------------------------------------------------------------


def people_table(people: Mapping[Split, Iterable[Person]]) -> pa.Table:
    """The people of each split as a table of tables.PEOPLE."""
    rows = [
        {"split": split, "image_id": person.image_id, **annotation.to_row(annotation.visibility > 0)}
        for split in people
        for person in people[split]
        for annotation in [person.annotation]
    ]
    return _sorted(pa.Table.from_pylist(rows, PEOPLE), "split", "image_id", "person_id")


def rejects_table(rejects: Iterable[Reject]) -> pa.Table:
    """Rejects as a table of tables.REJECTS."""
    table = pa.Table.from_pylist([vars(reject) for reject in rejects], REJECTS)
    return _sorted(table, "file", "record", "reason")


def _sorted(table: pa.Table, *keys: str) -> pa.Table:
    return table.sort_by([(key, "ascending") for key in keys])
