"""Read COCO annotations: JSON and image files in, checked images and people out, rejects explained.

People may have keypoints, a mask, both or neither, and may be crowds. Every record becomes an `Image`, a
`Person` or a `Reject` with the reason, in the order of the file; only a file that is not COCO's at all is an
error. Annotations of other categories (`category.py`) are counted. "People" may be animals or things.

Coordinates refer to the pixels as stored in the file or, where only these have the annotated size, to those
that EXIF orientation shows. person_record.py says what people's values mean.
"""

import hashlib
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from personlab.data import images, units
from personlab.data.category import Category, check_order, choose
from personlab.data.json_fields import BadRecordError, integer, record_id, repeated, whole
from personlab.data.person_record import annotation
from personlab.errors import UserError, first
from personlab.people import Annotation
from personlab.tables import PEOPLE, REJECTS, Split

NamesIn = Callable[[Path], Mapping[str, str]]


@dataclass(frozen=True)
class Share:
    """The part of a file's images that is one split of it, drawn at random.

    Which images it has depends on the seed and their ids only.
    """

    val: float  # share of the images in the validation split
    seed: int

    def of(self, split: Split, records: Sequence[Any]) -> list[Any]:
        """The split's images, in the file's order."""
        ranked = sorted(range(len(records)), key=lambda position: self._rank(position, records[position]))
        count = min(max(1, round(self.val * len(records))), len(records) - 1)
        chosen = set(ranked[:count] if split == "val" else ranked[count:])
        return [record for position, record in enumerate(records) if position in chosen]

    def _rank(self, position: int, record: Any) -> bytes:
        known = record_id(record)
        return hashlib.sha256(f"{self.seed} {position if known is None else known}".encode()).digest()


@dataclass(frozen=True)
class Layout:
    """Where one split is.

    Attributes:
        root: the dataset's folder, to which file names in tables are relative.
        annotations: the annotation file.
        folder: with the images, relative to the root.
        share: the file's images that belong to the split; None: all.
    """

    root: Path
    split: Split
    annotations: Path
    folder: str
    share: Share | None = None

    @property
    def annotations_name(self) -> str:
        """Relative to the root if inside it."""
        inside = self.annotations.is_relative_to(self.root)
        return (self.annotations.relative_to(self.root) if inside else self.annotations).as_posix()

    @property
    def images(self) -> Path:
        return self.root / self.folder


@dataclass(frozen=True)
class Records:
    """The raw records of an annotation file, not checked yet."""

    images: list[Any]
    people: list[Any]
    others: int  # annotations of other categories
    category: Category
    categories: dict[int, str]  # names by id

    def of(self, split: Split, share: Share | None) -> "Records":
        """The records of a split. Annotations of unknown images are training's, to be rejected there."""
        if share is None:
            return self
        images = share.of(split, self.images)
        ids = set(map(record_id, share.of("val", self.images))) - {None}
        people = [p for p in self.people if (_image_id(p) in ids) == (split == "val")]
        return replace(self, images=images, people=people)


@dataclass(frozen=True)
class Image:
    """An image whose file was decoded and has this size.

    file_name: relative to the layout's root.
    orientation: EXIF's; 1 is upright.
    """

    id: int
    file_name: str
    height: int
    width: int
    orientation: int = 1

    @property
    def orientation_is_unclear(self) -> bool:
        """Whether the size does not tell if the annotations mean the pixels as stored or as shown."""
        return self.orientation > 1 and (self.orientation < 5 or self.height == self.width)


@dataclass(frozen=True)
class Person:
    """An annotated person and the image it is in."""

    image_id: int
    annotation: Annotation
    notes: tuple[str, ...] = ()  # what was inferred


@dataclass(frozen=True)
class Reject:
    """A rejected record and the reason."""

    file: str  # annotation file, relative to the layout's root
    record: str  # e.g. "annotation 1234"
    reason: str


def load(path: Path, wanted: Sequence[str] = ()) -> Records:
    """Parse an annotation file.

    Args:
        wanted: names of categories, instead of the default (`category.py`).

    Raises:
        UserError: the file is missing, is not JSON or not COCO's, has no image, or its categories do not say
            which annotations are people.
    """
    images, annotations, categories = _lists(path, _load_json(path))
    if not images:
        raise UserError(f"{path}: lists no image; there is nothing to do")
    annotations = list(_numbered(annotations))
    category = choose(path, categories, annotations, wanted)
    check_order(path, category.keypoints)
    # Where the category is not a number, the annotation is kept, to be rejected with this reason.
    people = [a for a in annotations if _category_id(a) in (None, *category.ids)]
    names = {number: str(c.get("name")) for c in categories if (number := record_id(c)) is not None}
    if not people and (unknown := set(map(_category_id, annotations)) - names.keys()):
        raise UserError(
            f"{path}: none of its {len(annotations)} annotations is of category {category.ids[0]}, "
            f"{category.name}, but some are of {first(sorted(map(str, unknown)))}, which 'categories' does "
            "not list"
        )
    return Records(images, people, len(annotations) - len(people), category, names)


def load_images(path: Path, wanted: Sequence[str] = ()) -> tuple[dict[int, "Image"], int]:
    """The images of a file with or without annotations, by id, and the id of its category.

    Args:
        wanted: as `load`.

    Raises:
        UserError: as `load`, or an image's record is not COCO's.
    """
    content = _load_json(path)
    if isinstance(content, dict):
        content.setdefault("annotations", [])
    images, annotations, categories = _lists(path, content)
    return images_of(path, images), choose(path, categories, annotations, wanted).ids[0]


def images_of(path: Path, records: Iterable[Any]) -> dict[int, "Image"]:
    """The images of an annotation file, by id; the files are not looked for.

    Raises:
        UserError: a record is not COCO's (it is named).
    """
    images = dict[int, Image]()
    for position, record in enumerate(records):
        try:
            height, width = (integer(record, side, 1, 2**31) for side in ("height", "width"))
            image = Image(integer(record, "id", 0, 2**63), str(record.get("file_name") or ""), height, width)
            if image.id in images:
                raise BadRecordError(f"id {image.id} was used before")
        except BadRecordError as error:
            raise UserError(f"{path}: image number {position} of the list: {error}") from None
        images[image.id] = image
    return images


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; COCO's annotations should be there") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid JSON: not UTF-8 ({error.reason} at byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); is it complete? Get it again") from None


def _lists(path: Path, content: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Images, annotations and categories."""
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path}: no list '{key}' in it; not a COCO annotation file")
    return content["images"], content["annotations"], content["categories"]


def _numbered(annotations: Sequence[Any]) -> Iterator[Any]:
    """Annotations without ids, such as results that are taken as annotations, numbered after the others."""
    number = max((record_id(each) or 0 for each in annotations), default=0)
    for each in annotations:
        if isinstance(each, dict) and each.get("id") is None:
            number += 1
            yield each | {"id": number}
        else:
            yield each


def _category_id(annotation: Any) -> int | None:
    """The category of an annotation, if it is a whole number."""
    return whole(annotation.get("category_id")) if isinstance(annotation, dict) else None


def _image_id(annotation: Any) -> int | None:
    return whole(annotation.get("image_id")) if isinstance(annotation, dict) else None


# --- images -------------------------------------------------------------------------------------------------


def check_images(layout: Layout, records: Sequence[Any]) -> Iterator[Image | Reject]:
    """Decode every image and compare its size with the record, in threads; in the order of the records."""
    repeats = repeated(records)
    folder = layout.images.resolve()
    names_in = cache(_names_in)  # for this call, since files may be added later

    def check(position: int) -> Image | Reject:
        record = records[position]
        try:
            if position in repeats:
                raise BadRecordError(repeats[position])
            return _image(layout, folder, record, names_in)
        except BadRecordError as error:
            return _reject(layout, "image", position, record, error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(check, range(len(records)))


def _image(layout: Layout, folder: Path, record: Any, names_in: NamesIn) -> Image:
    image_id = integer(record, "id", 0, 2**63)
    height, width = integer(record, "height", 1, 2**31), integer(record, "width", 1, 2**31)
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        raise BadRecordError("has no file_name")
    file = _inside(folder, PurePosixPath(name.replace("\\", "/")), names_in)
    try:
        images.decode_annotated(folder / file, height, width)
    except UserError as error:
        raise BadRecordError(f"{name}: {error}") from None
    orientation = images.orientation(folder / file)
    return Image(image_id, (PurePosixPath(layout.folder) / file).as_posix(), height, width, orientation)


def _names_in(folder: Path) -> dict[str, str]:
    """The names in a folder by their composed form; none if it cannot be listed."""
    with suppress(OSError):
        return {unicodedata.normalize("NFC", path.name): path.name for path in folder.iterdir()}
    return {}


def as_on_disk(folder: Path, name: PurePosixPath, names_in: NamesIn = _names_in) -> PurePosixPath:
    """The name of a file or folder below `folder`, with accents as on the disk; macOS decomposes them."""
    if (folder / name).exists() or not name.name:
        return name
    parent = as_on_disk(folder, name.parent, names_in)
    composed = unicodedata.normalize("NFC", name.name)
    return parent / names_in(folder / parent).get(composed, name.name)


def _inside(folder: Path, name: PurePosixPath, names_in: NamesIn) -> PurePosixPath:
    """The file's name `as_on_disk`, inside the folder even after links are resolved.

    Folders in front of it that do not exist are left out: tools write paths from a folder of their own, and
    URLs, in which other characters are percent-encoded.
    """
    try:
        spelled = [each.parts for each in (name, PurePosixPath(unquote(str(name)))) if ".." not in each.parts]
        paths = [PurePosixPath(*parts[k:]) for parts in spelled for k in range(len(parts))]
        names = (as_on_disk(folder, path, names_in) for path in paths)
        name = next((each for each in names if (folder / each).is_file()), as_on_disk(folder, name, names_in))
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, an invalid name
        raise BadRecordError(f"file_name '{name}' cannot be resolved ({error})") from None
    if not path.is_relative_to(folder) or ".." in name.parts:
        raise BadRecordError(f"file_name '{name}' is outside the image folder")
    return name


def images_by_id(records: Iterable[Any], checked: Iterable[Image | Reject]) -> dict[int, Image | Reject]:
    """The checked images by id; of a repeated id, the first."""
    pairs = reversed(list(zip(map(record_id, records), checked, strict=True)))
    return {image_id: image for image_id, image in pairs if image_id is not None}


# --- people -------------------------------------------------------------------------------------------------


def check_people(
    layout: Layout, records: Sequence[Any], images: Mapping[int, Image | Reject], names: Sequence[str]
) -> Iterator[Person | Reject]:
    """Check every person, in the order of the records. People of rejected images are rejected.

    Args:
        names: of the keypoints.

    Raises:
        UserError: the coordinates of most people are of another kind than COCO's.
    """
    repeats = repeated(records)
    sizes = {number: (i.height, i.width) for number, i in images.items() if isinstance(i, Image)}
    if fault := units.fault(records, sizes):
        raise UserError(f"{layout.annotations}: {fault}")
    for position, record in enumerate(records):
        try:
            if position in repeats:
                raise BadRecordError(repeats[position])
            yield check_person(record, images, names)
        except BadRecordError as error:
            yield _reject(layout, "annotation", position, record, error)


def check_person(record: Any, images: Mapping[int, Image | Reject], names: Sequence[str]) -> Person:
    """A person's record, checked. Without a segmentation (missing, null or []), `rle` is empty.

    names: of the keypoints.

    Raises:
        BadRecordError: it is not what COCO writes, or its image is unknown or rejected.
    """
    image_id = integer(record, "image_id", 0, 2**63)
    image = images.get(image_id)
    if image is None:
        raise BadRecordError(f"image {image_id} is not among the images")
    if isinstance(image, Reject):
        raise BadRecordError(f"image {image_id} was rejected: {image.reason}")
    return Person(image_id, *annotation(record, image.height, image.width, names))


def _reject(layout: Layout, kind: str, position: int, record: Any, error: BadRecordError) -> Reject:
    known = record_id(record)
    name = f"{kind} {known}" if known is not None else f"{kind} without id, number {position} of the list"
    reason = str(error).encode(errors="backslashreplace").decode()  # JSON may hold lone surrogates
    return Reject(layout.annotations_name, name, reason)


# --- tables -------------------------------------------------------------------------------------------------


def people_table(people: Mapping[Split, Iterable[Person]]) -> pa.Table:
    """The people of each split as a table of tables.PEOPLE."""
    rows = [
        {"split": split, "image_id": person.image_id}
        | person.annotation.to_row(person.annotation.visibility > 0)
        for split in people
        for person in people[split]
    ]
    return _sorted_table(rows, PEOPLE, "split", "image_id", "person_id")


def rejects_table(rejects: Iterable[Reject]) -> pa.Table:
    """Rejects as a table of tables.REJECTS."""
    return _sorted_table([vars(reject) for reject in rejects], REJECTS, "file", "record", "reason")


def _sorted_table(rows: list[dict[str, Any]], schema: pa.Schema, *keys: str) -> pa.Table:
    return pa.Table.from_pylist(rows, schema).sort_by([(key, "ascending") for key in keys])
