"""Read a YOLO pose dataset, as Ultralytics and Roboflow write it, into COCO annotations.

    data.yaml       train, val: image folders, or text files that list images; names;
                    kpt_shape: [K, 2 or 3]; flip_idx; kpt_names (optional)
    images/...      image files
    labels/...      a text file for each image, a line for each object:
                    class, box (centre x, y, width, height), K times x, y and, by kpt_shape, visibility

Coordinates are fractions of the image. Images without a text file have no annotation. There are no masks.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from personlab.data import images
from personlab.data.json_fields import whole
from personlab.errors import UserError
from personlab.tables import Split

FILE: Final = "data.yaml"

Record = dict[str, Any]


def to_coco(folder: Path, split: Split) -> Record:
    """The split of the dataset in `folder` as a COCO annotation file; file names are relative to `folder`.

    Raises:
        UserError: data.yaml is missing or incomplete, there are no images, or lines of text files are not as
            described above; the first is named.
    """
    folder = folder.resolve()
    content = _load(folder / FILE)
    count, numbers = _shape(folder / FILE, content)
    categories = _categories(folder / FILE, content, count)
    classes = {category["id"] for category in categories}
    files = _images(folder, content, split)
    records, annotations, faults = list[Record](), list[Record](), list[str]()
    for number, path in enumerate(files, start=1):
        height, width = images.size(path)
        name = path.relative_to(folder).as_posix()
        records.append({"id": number, "file_name": name, "height": height, "width": width})
        for place, line in _lines(folder, path):
            try:
                found = _annotation(line, classes, count, numbers, height, width)
            except ValueError as error:
                faults.append(f"{place}: {error}")
                continue
            annotations.append({"id": len(annotations) + 1, "image_id": number, **found})
    if faults:
        more = f" (and {len(faults) - 1} more lines)" if len(faults) > 1 else ""
        raise UserError(f"{folder / faults[0]}{more}")
    if not annotations:
        first = _label_file(folder, files[0])
        raise UserError(
            f"{first}: no label in it or any other text file of '{split}'; are they in this folder?"
        )
    return {"images": records, "annotations": annotations, "categories": categories}


def _load(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; acquire.directory is the folder that holds it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a YOLO dataset's")
    return content


def _shape(path: Path, content: Mapping[str, Any]) -> tuple[int, int]:
    """The number of keypoints and the numbers that each has."""
    shape = content.get("kpt_shape")
    if not (
        isinstance(shape, list)
        and len(shape) == 2
        and all(isinstance(n, int) for n in shape)
        and shape[0] > 0
        and shape[1] in (2, 3)
    ):
        raise UserError(
            f"{path}: kpt_shape is {shape!r}, not [number of keypoints, 2 or 3]; a pose dataset has it"
        )
    return shape[0], shape[1]


def _images(folder: Path, content: Mapping[str, Any], split: Split) -> list[Path]:
    """The image files of a split, sorted: of a folder, of several, or those that a text file lists."""
    value = content.get(split) or content.get("valid" if split == "val" else split)
    values = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
    if not values:
        raise UserError(f"{folder / FILE}: '{split}' is {value!r}, not a folder of images")
    found = {path for each in values for path in _images_at(folder, str(content.get("path") or "."), each)}
    if not found:
        raise UserError(f"{folder / values[0]}: no images in it")
    return sorted(found)


def _images_at(folder: Path, base: str, value: str) -> Iterator[Path]:
    """The image files of a folder or of a list, as data.yaml names it."""
    # Roboflow writes ../train/images for the folder train/images beside data.yaml
    inside = PurePosixPath(*(part for part in PurePosixPath(value).parts if part not in ("..", "/")))
    places = [folder / base / value, folder / base / inside, folder / inside]
    place = next((p.resolve() for p in places if p.exists() and _is_inside(p, folder)), None)
    if place is None:
        raise UserError(
            f"{folder / inside}: nothing of that name inside the dataset, although {FILE} names it"
        )
    if place.is_dir():
        known = images.suffixes()
        yield from (path for path in place.rglob("*") if path.suffix.lower() in known and path.is_file())
        return
    for line in _text(place).splitlines():
        if line.strip():
            path = (place.parent / line.strip()).resolve()
            if not path.is_relative_to(folder):  # a path of another machine, from the dataset's folder on
                parts = PurePosixPath(line.strip()).parts
                path = next(
                    (p for k in range(len(parts)) if (p := folder.joinpath(*parts[k:])).is_file()), path
                )
            if not path.is_relative_to(folder) or not path.is_file():
                raise UserError(f"{place}: '{line.strip()}' is no file inside the dataset")
            yield path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def _is_inside(place: Path, folder: Path) -> bool:
    return place.resolve().is_relative_to(folder)


def _label_file(folder: Path, image: Path) -> Path:
    """The text file of an image: in the folder `labels` in the place of `images`, or beside it."""
    parts = list(image.relative_to(folder).parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return folder.joinpath(*parts).with_suffix(".txt")


def _lines(folder: Path, image: Path) -> Iterator[tuple[str, str]]:
    """The lines of the text file of an image and their places, e.g. "labels/1.txt, line 3"."""
    path = _label_file(folder, image)
    if path.is_file():
        for number, line in enumerate(_text(path).splitlines(), start=1):
            if line.strip():
                yield f"{path.relative_to(folder).as_posix()}, line {number}", line


def _annotation(
    line: str, classes: Collection[int], count: int, numbers: int, height: int, width: int
) -> Record:
    """A line as a COCO annotation without ids.

    Raises:
        ValueError: it is not as the module describes.
    """
    category, *values = map(float, line.split())
    if not all(map(math.isfinite, values)):
        raise ValueError("holds a number that is not finite")
    if category not in classes:
        raise ValueError(f"class {category:g} is not in 'names' of {FILE}")
    if len(values) != 4 + numbers * count:
        raise ValueError(
            f"{1 + len(values)} numbers, not {5 + numbers * count}: class, box of 4, {count} keypoints of "
            f"{numbers}"
        )
    x, y, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
    keypoints = list[float]()
    for k in range(4, len(values), numbers):
        across, down, *seen = values[k : k + numbers]
        visibility = seen[0] if seen else 2 * (across != 0 or down != 0)
        keypoints += [across * width, down * height, visibility] if visibility else [0, 0, 0]
    box = [x - w / 2, y - h / 2, w, h]
    return {"category_id": int(category), "bbox": box, "keypoints": keypoints, "iscrowd": 0}


def _categories(path: Path, content: Mapping[str, Any], count: int) -> list[Record]:
    """The classes as COCO's categories.

    Raises:
        UserError: names, kpt_names or flip_idx are not as the module describes.
    """
    names = content.get("names") or ["person"]
    names = [names] if isinstance(names, str) else names
    named = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(named, dict) or None in (numbers := [whole(number) for number in named]):
        raise UserError(f"{path}: names is {names!r}, neither a list nor numbers with names")
    listed = content.get("kpt_names") or []  # of each class, or of all
    of_class = listed if isinstance(listed, dict) else dict.fromkeys(numbers, listed)
    if not all(isinstance(each, list) for each in of_class.values()):
        raise UserError(f"{path}: kpt_names is {listed!r}, not a list of names for each class")
    flip = content.get("flip_idx") or []
    if flip and not _is_flip(flip, count):
        raise UserError(f"{path}: flip_idx is {flip!r}, not pairs of {count} keypoints, from 0")
    return [
        {
            "id": number,
            "name": name,
            "keypoints": of_class.get(number, []),
            "flip_idx": flip,
        }
        for number, name in zip(numbers, named.values(), strict=True)
    ]


def _is_flip(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and sorted(map(str, value)) == sorted(map(str, range(count)))
        and all(int(value[int(value[k])]) == k for k in range(count))
    )
