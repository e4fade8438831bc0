"""Reading a COCO layout: valid records are kept as annotated, the others are rejected with a reason."""

import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_api

from personlab.data import coco
from personlab.data.coco import Image, Person, Reject
from personlab.errors import UserError
from personlab.tables import validate
from tests import layouts
from tests.coco_person import KEYPOINTS
from tests.layouts import (
    HEIGHT,
    SQUARE,
    WIDTH,
    Record,
    document,
    image,
    person,
    without,
    write_image,
    write_json,
    write_layout,
)

Images, People = list[Image | Reject], list[Person | Reject]


def read(root: Path) -> tuple[Images, People]:
    layout = layouts.layout(root, "val")
    records = coco.load(layout.annotations)
    images = list(coco.check_images(layout, records.images))
    by_id = coco.images_by_id(records.images, images)
    return images, list(coco.check_people(layout, records.people, by_id, records.category.keypoints))


def only_person(root: Path, **changes: Any) -> Person:
    write_layout(root, "val", [image(1)], [person(5, 1) | changes])
    (found,) = read(root)[1]
    assert isinstance(found, Person), found
    return found


def square_mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:25, 10:20] = 1
    return np.asfortranarray(mask)


def decoded(rle: bytes) -> np.ndarray:
    return mask_api.decode({"size": [HEIGHT, WIDTH], "counts": rle})


# --- good records -------------------------------------------------------------------------------------------


def test_a_person_is_kept_as_annotated(tmp_path: Path) -> None:
    found = only_person(tmp_path)
    annotation = found.annotation
    assert (found.image_id, annotation.id, annotation.crowd, annotation.imputed) == (1, 5, False, False)
    assert annotation.keypoints[:3].tolist() == [[12, 8], [14.5, 7], [0, 0]]
    assert annotation.visibility.tolist() == [2, 1] + [0] * 15
    assert (annotation.box, annotation.area) == ((10, 5, 10, 20), 200)
    assert (decoded(annotation.rle) == square_mask()).all()


def test_images_are_named_from_the_root(tmp_path: Path) -> None:
    write_layout(tmp_path, "val", [image(1, file_name="sub/1.jpg"), image(2)], [])
    write_image(tmp_path / "val2017/sub/1.jpg")
    images, people = read(tmp_path)
    assert images == [Image(1, "val2017/sub/1.jpg", HEIGHT, WIDTH), Image(2, "val2017/2.jpg", HEIGHT, WIDTH)]
    assert people == []


def test_unlabelled_keypoints_are_zero(tmp_path: Path) -> None:
    found = only_person(tmp_path, keypoints=[999, -5, 0] * 17)
    assert not found.annotation.keypoints.any()
    assert not found.annotation.visibility.any()


def test_a_person_without_keypoints_has_a_mask(tmp_path: Path) -> None:
    write_layout(tmp_path, "val", [image(1)], [without(person(5, 1), "keypoints", "num_keypoints")])
    (found,) = read(tmp_path)[1]
    assert isinstance(found, Person)
    assert not found.annotation.visibility.any()
    assert decoded(found.annotation.rle).sum() == 200


@pytest.mark.parametrize("keypoints", [[], None])
def test_empty_keypoints_are_none(tmp_path: Path, keypoints: Any) -> None:
    """CVAT's tracks and COCO Annotator write them."""
    assert not only_person(tmp_path, keypoints=keypoints).annotation.visibility.any()


@pytest.mark.parametrize("box", [[], None])
def test_a_missing_box_is_the_masks(tmp_path: Path, box: Any) -> None:
    assert only_person(tmp_path, bbox=box).annotation.box == (10, 5, 10, 20)


def test_whole_numbers_may_be_written_as_floats(tmp_path: Path) -> None:
    """pandas writes them so."""
    record = image(1, id=1.0, width=float(WIDTH), height=float(HEIGHT))
    write_layout(tmp_path, "val", [record], [person(5, 1) | {"id": 5.0, "image_id": 1.0, "category_id": 1.0}])
    (found,), (human,) = read(tmp_path)
    assert found == Image(1, "val2017/1.jpg", HEIGHT, WIDTH)
    assert isinstance(human, Person)
    assert (type(human.image_id), human.annotation.id) == (int, 5)


def test_ids_beyond_floats_are_exact(tmp_path: Path) -> None:
    ids = [2**60, 2**60 + 1]
    write_layout(tmp_path, "val", [image(i) for i in ids], [person(i, i) for i in ids])
    images, people = read(tmp_path)
    assert [found.id for found in images if isinstance(found, Image)] == ids
    assert [found.annotation.id for found in people if isinstance(found, Person)] == ids


def test_a_polygon_without_a_list_around_it_is_one(tmp_path: Path) -> None:
    """VIA and RectLabel write it so."""
    found = only_person(tmp_path, segmentation=SQUARE[0])
    assert (decoded(found.annotation.rle) == square_mask()).all()


@pytest.mark.parametrize(("stated", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_composed_otherwise_on_the_disk(tmp_path: Path, stated: Any, stored: Any) -> None:
    name, on_disk = (unicodedata.normalize(form, "é/ü 1.jpg") for form in (stated, stored))
    write_layout(tmp_path, "val", [], [person(5, 1)])
    write_json(tmp_path, "val", document([image(1, file_name=name)], [person(5, 1)]))
    write_image(tmp_path / "val2017" / on_disk)
    assert read(tmp_path)[0] == [Image(1, f"val2017/{on_disk}", HEIGHT, WIDTH)]


def test_annotations_without_ids_are_numbered(tmp_path: Path) -> None:
    """As results have none."""
    people = [without(person(1, 1), "id"), person(7, 1), person(7, 1, id=None)]
    records = coco.load(write_json(tmp_path, "val", document([image(1)], people)))
    assert [record["id"] for record in records.people] == [8, 7, 9]


def test_area_and_iscrowd_may_be_missing(tmp_path: Path) -> None:
    nulls = person(6, 1, area=None, iscrowd=None)
    write_layout(tmp_path, "val", [image(1)], [without(person(5, 1), "area", "iscrowd"), nulls])
    (found, same) = read(tmp_path)[1]
    assert isinstance(found, Person)
    assert isinstance(same, Person)
    assert (found.annotation.area, found.annotation.crowd) == (200, False)


@pytest.mark.parametrize("margin", [0, 1])
def test_coco_rounds_at_the_border(tmp_path: Path, margin: int) -> None:
    corner = [WIDTH + margin, HEIGHT + margin, 2]
    box = [-margin, -margin, WIDTH + 2 * margin, HEIGHT + 2 * margin]
    found = only_person(tmp_path, keypoints=corner + [0] * 48, bbox=box)
    assert found.annotation.keypoints[0].tolist() == corner[:2]
    assert found.annotation.box == tuple(box)


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_api.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends, len(flat)]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *runs] if flat[0] else runs}


@pytest.mark.parametrize("write", [compressed, uncompressed])
@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_of_either_kind(tmp_path: Path, write: Callable[..., Any], seed: int) -> None:
    mask = np.asfortranarray(np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.3 + seed / 8, np.uint8)
    mask[:, 5 : 5 + 8 * seed] = 1  # long runs take several characters
    found = only_person(tmp_path, segmentation=write(mask), iscrowd=1)
    assert (decoded(found.annotation.rle) == mask).all()
    assert found.annotation.crowd


def test_several_polygons_are_one_mask_and_a_line_covers_nothing(tmp_path: Path) -> None:
    other = [25.0, 5.0, 35.0, 5.0, 35.0, 25.0, 25.0, 25.0]
    found = only_person(tmp_path, segmentation=[*SQUARE, other, [1.0, 1.0, 9.0, 9.0], []])
    assert (decoded(found.annotation.rle) == (square_mask() | np.roll(square_mask(), 15, axis=1))).all()


def test_other_categories_are_counted_not_read(tmp_path: Path) -> None:
    write_layout(tmp_path, "val", [image(1)], [person(5, 1), {"id": 6, "category_id": 3}])
    assert coco.load(layouts.layout(tmp_path, "val").annotations).others == 1
    assert len(read(tmp_path)[1]) == 1


def test_a_split_folder_may_be_a_link(tmp_path: Path) -> None:
    write_layout(tmp_path / "real", "val", [image(1)], [])
    (tmp_path / "layout").mkdir()
    for name in ("annotations", "val2017"):
        (tmp_path / "layout" / name).symlink_to(tmp_path / "real" / name)
    assert read(tmp_path / "layout")[0] == [Image(1, "val2017/1.jpg", HEIGHT, WIDTH)]


# --- bad images ---------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def link_out(path: Path) -> None:
    write_image(path.parent.parent / "outside.jpg")
    path.unlink()
    path.symlink_to(path.parent.parent / "outside.jpg")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


BAD_FILES = {
    "truncated": (truncate, r"1\.jpg: cannot be read: image file is truncated"),
    "text": (lambda path: path.write_text("hello"), r"1\.jpg: is not an image"),
    "empty": (lambda path: path.write_text(""), r"1\.jpg: is empty"),
    "size": (
        lambda path: write_image(path, size=(30, 40)),
        r"is 30 x 40 pixels, the annotations say 40 x 30",
    ),
    "missing": (lambda path: path.unlink(), r"1\.jpg: no such file"),
    "other case": (lambda path: path.rename(path.with_suffix(".JPG")), r"no such file; 1\.JPG is there"),
    "link out": (link_out, r"file_name '1\.jpg' is outside the image folder"),
    "circle": (link_to_itself, r"1\.jpg"),
}

BAD_IMAGES = {
    "climbs": ({"file_name": "../../x.jpg"}, r"file_name '\.\./\.\./x\.jpg' is outside the image folder"),
    "climbs back": ({"file_name": "../val2017/1.jpg"}, "is outside the image folder"),
    "absolute": ({"file_name": "/etc/passwd"}, "is outside the image folder"),
    "no name": ({"file_name": None}, "has no file_name"),
    "empty name": ({"file_name": ""}, "has no file_name"),
    "NUL": ({"file_name": "a\0b"}, "cannot be resolved"),
    "half a pair": ({"file_name": "\ud800"}, "cannot be resolved"),
    "long name": ({"file_name": "x" * 5000}, "."),
    "folder": ({"file_name": "."}, "is a folder"),
    "no height": ({"height": None}, "height is null, not a whole number from 1 up"),
    "zero width": ({"width": 0}, "width is 0, not a whole number"),
    "float id": ({"id": 1.5}, "id is 1.5, not a whole number"),
    "huge id": ({"id": 2**63}, "id is 9223372036854775808, not a whole number"),
}


@pytest.mark.parametrize(("spoil", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_rejected_with_its_people(
    tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    write_layout(tmp_path, "val", [image(1), image(2)], [person(5, 1), person(6, 2)])
    spoil(tmp_path / "val2017/1.jpg")
    (bad, good), (bad_person, good_person) = read(tmp_path)
    assert_rejected(bad, "image 1", reason)
    assert_rejected(bad_person, "annotation 5", f"image 1 was rejected: .*{reason}")
    assert isinstance(good, Image)
    assert isinstance(good_person, Person)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_images_of_any_format_are_accepted(tmp_path: Path, kind: str) -> None:
    write_layout(tmp_path, "val", [image(1)], [person(5, 1)])
    write_image(tmp_path / "val2017/1.jpg", kind)
    (found,), _ = read(tmp_path)
    assert isinstance(found, Image)


@pytest.mark.parametrize(("changes", "reason"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_image_record_is_rejected(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    write_image(tmp_path / "x.jpg")
    write_layout(tmp_path, "val", [image(1) | changes, image(2)], [])
    (bad, good), _ = read(tmp_path)
    assert_rejected(bad, "image", reason)
    assert isinstance(good, Image)
    validate(coco.rejects_table([bad]))


def test_an_image_record_that_is_no_object_is_rejected(tmp_path: Path) -> None:
    write_layout(tmp_path, "val", ["1.jpg", image(2)], [])
    assert_rejected(read(tmp_path)[0][0], "image without id, number 0 of the list", "is not an object")


def test_of_equal_image_records_the_first_stays(tmp_path: Path) -> None:
    write_layout(tmp_path, "val", [image(1), image(1)], [person(5, 1)])
    (first, second), (found,) = read(tmp_path)
    assert isinstance(first, Image)
    assert_rejected(second, "image 1", "id 1 was used before")
    assert isinstance(found, Person)


def test_an_id_of_two_files_is_rejected(tmp_path: Path) -> None:
    write_layout(tmp_path, "val", [image(1), image(1, file_name="2.jpg")], [person(5, 1)])
    images, (found,) = read(tmp_path)
    for bad in images:
        assert_rejected(bad, "image 1", "id 1 stands for 2 different files")
    assert_rejected(found, "annotation 5", "image 1 was rejected: id 1 stands for")


def assert_rejected(found: object, record: str, reason: str) -> None:
    assert isinstance(found, Reject), found
    assert found.file == "annotations/person_keypoints_val2017.json"
    assert found.record.startswith(record)
    assert re.search(reason, found.reason), found.reason


# --- bad people ---------------------------------------------------------------------------------------------

NOSE = [12, 8, 2]
PIXELS = HEIGHT * WIDTH


def rle(counts: Any, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}


BAD_PEOPLE = {
    "missing image": ({"image_id": 9}, "image 9 is not among the images"),
    "no image": ({"image_id": None}, "image_id is null, not a whole number"),
    "text id": ({"id": "five"}, 'id is "five", not a whole number'),
    "true id": ({"id": True}, "id is true, not a whole number"),
    "NaN keypoint": (
        {"keypoints": [math.nan, 8, 2] + [0] * 48},
        "keypoints holds a number that is not finite",
    ),
    "infinite keypoint": ({"keypoints": [12, math.inf, 2] + [0] * 48}, "keypoints .* not finite"),
    "huge keypoint": (
        {"keypoints": [10**400, 8, 2] + [0] * 48},
        "keypoints holds a number that is too large",
    ),
    "keypoint count": ({"keypoints": NOSE * 16}, "keypoints holds 48 numbers, not 51: x, y, vis"),
    "text keypoint": (
        {"keypoints": ["12", 8, 2] + [0] * 48},
        r'keypoints is \["12", 8, 2, .*\.\.\., not a list',
    ),
    "visibility": (
        {"keypoints": [0, 0, 0, 12, 8, 1.5] + [0] * 45},
        r"the visibility of left_eye is 1\.5, not 0 \(unlabelled\), 1 \(hidden\) or 2",
    ),
    "keypoints outside": (
        {"keypoints": [12, -2, 1] + [41.5, 8, 1] + [0] * 45},
        r"all labelled keypoints are outside the image of 40 x 30: nose at \(12, -2\)",
    ),
    "line": ({"segmentation": [[1, 1, 9, 9]]}, "its polygons have at most 4 numbers; a polygon has 6 or"),
    "point": ({"segmentation": [[5, 5, 5, 5, 5, 5]]}, "its mask is empty"),
    "odd polygon": ({"segmentation": [[1, 1, 9, 9, 5, 5, 3]]}, "a polygon holds an odd number"),
    "text polygon": ({"segmentation": ["a"]}, r'a polygon is \["a"\], not a list of numbers'),
    "NaN polygon": ({"segmentation": [[math.nan, *SQUARE[0][1:]]]}, "a polygon holds a number that is not"),
    "far polygon": ({"segmentation": [[1, 1, 1e12, 1, 1e12, 9]]}, "a polygon is far outside the image"),
    "polygon beside": ({"segmentation": [[50, 1, 60, 1, 60, 9]]}, "its mask is empty"),
    "mask elsewhere": (
        {"segmentation": [[30, 1, 39, 1, 39, 9]]},
        r"bbox \(10, 5, 10, 20\) and the mask, from \(31, 1\) to \(39, 8\), lie apart",
    ),
    "keypoints elsewhere": (
        {"keypoints": [36, 28, 2] + [0] * 48, "bbox": [1, 5, 10, 20]},
        r"no labelled keypoint is near the bbox \(1, 5, 10, 20\); one is at \(36, 28\)",
    ),
    "empty mask": ({"segmentation": rle([PIXELS])}, "its mask is empty"),
    "mask size": (
        {"segmentation": rle([600, 600], (WIDTH, HEIGHT))},
        r"size \[40, 30\], the image of \[30, 40",
    ),
    "short mask": ({"segmentation": rle([600, 10])}, "run lengths add up to 610 pixels, not 1200"),
    "long mask": ({"segmentation": rle([600, 601])}, "run lengths add up to 1201 pixels, not 1200"),
    "negative run": ({"segmentation": rle([-600, 1800])}, "counts are not run lengths"),
    "fractional run": ({"segmentation": rle([600.0, 600.0])}, "counts are not run lengths"),
    "no counts": ({"segmentation": rle(None)}, "counts are not run lengths"),
    "bad string": ({"segmentation": rle("zz~~")}, "counts are not a compressed run-length string"),
    "cut string": ({"segmentation": rle("o")}, "counts end within a number"),
    "endless string": ({"segmentation": rle("o" * 99)}, "counts are not a compressed run-length string"),
    "short string": ({"segmentation": rle("52203")}, "run lengths add up to"),
    "zero width box": ({"bbox": [10, 5, 0, 20]}, "bbox has no area: 0 x 20"),
    "negative box": ({"bbox": [10, 5, 10, -20]}, "bbox has no area: 10 x -20"),
    "box outside": ({"bbox": [50, 5, 10, 20]}, r"bbox \(50, 5, 10, 20\) \(x, y, width, height\) is outside"),
    "box reaches far out": ({"bbox": [25, 5, 40, 20]}, "is outside the image"),
    "NaN box": ({"bbox": [math.nan, 5, 10, 20]}, "bbox holds a number that is not finite"),
    "box count": ({"bbox": [10, 5, 10]}, "bbox holds 3 numbers, not 4"),
    "text box": ({"bbox": "10 5 10 20"}, 'bbox is "10 5 10 20", not a list of numbers'),
    "negative area": ({"area": -1}, "area is -1"),
    "text area": ({"area": "200"}, 'area is "200", not a number'),
    "NaN area": ({"area": math.nan}, "area holds a number that is not finite"),
    "crowd": ({"iscrowd": "0"}, 'iscrowd is "0", not 0 or 1'),
    "category": ({"category_id": "one"}, 'category_id is "one", not a whole number'),
    "rounded id": ({"id": 2.0**60}, "id is 1.152921504606847e.18, not a whole number"),
}


@pytest.mark.parametrize(("changes", "reason"), BAD_PEOPLE.values(), ids=BAD_PEOPLE)
def test_a_bad_person_is_rejected(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    write_layout(tmp_path, "val", [image(1)], [person(5, 1) | changes, person(6, 1)])
    bad, good = read(tmp_path)[1]
    assert_rejected(bad, "annotation", reason)
    assert isinstance(good, Person)


def test_a_repeated_annotation_id_is_rejected(tmp_path: Path) -> None:
    write_layout(tmp_path, "val", [image(1), image(2)], [person(5, 1), person(5, 2), person(6, 1)])
    first, second, third = read(tmp_path)[1]
    assert isinstance(first, Person)
    assert_rejected(second, "annotation 5", "id 5 was used before")
    assert isinstance(third, Person)


def test_annotations_that_cannot_be_told_to_be_of_another_category_are_rejected(tmp_path: Path) -> None:
    write_layout(tmp_path, "val", [image(1)], [without(person(5, 1), "category_id"), None])
    first, second = read(tmp_path)[1]
    assert_rejected(first, "annotation 5", "has no category_id")
    assert_rejected(second, "annotation without id, number 1 of the list", "is not an object")


# --- files that are no COCO at all --------------------------------------------------------------------------

EYE = "Left Eye"
GOOD = document([image(1)], [person(5, 1)])
FATAL = {
    "truncated": (json.dumps(GOOD)[:-30], "not valid JSON"),
    "empty": ("", "not valid JSON"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "list": ("[]", "no list 'images' in it"),
    "no images": (without(GOOD, "images"), "no list 'images' in it"),
    "no annotations": (without(GOOD, "annotations"), "no list 'annotations' in it"),
    "no categories": (without(GOOD, "categories"), "no list 'categories' in it"),
    "images is an object": (GOOD | {"images": {}}, "no list 'images' in it"),
    "no person": (
        document([image(1)], [person(5, 1, category_id=3, keypoints=[])])
        | {"categories": [{"id": 3, "name": "car"}]},
        "must name 'person' once, not 0 times",
    ),
    "two persons": (GOOD | {"categories": [{"id": 1, "name": "person"}] * 2}, "not 2 times"),
    "no image": (GOOD | {"images": []}, "lists no image"),
    "text category": (GOOD | {"categories": [{"id": "a", "name": "person"}]}, "'person': id is \"a\", not a"),
    "no category id": (GOOD | {"categories": [{"name": "person"}]}, "category 'person': has no id"),
    "one id, two categories": (
        GOOD | {"categories": [{"id": 1, "name": "person"}, {"id": 1, "name": "dog"}]},
        "category id 1 is that of 'person' and of 'dog'",
    ),
    "unlisted category": (
        GOOD | {"annotations": [person(5, 1, category_id=0)]},
        "none of its 1 annotations is of category 1, person, but some are of 0, which",
    ),
    "order": (
        GOOD | {"categories": [{"id": 1, "name": "person", "keypoints": [EYE, "nose", *KEYPOINTS[2:]]}]},
        "in another order than COCO's: 'Left Eye' is listed instead of nose",
    ),
}


@pytest.mark.parametrize(("content", "message"), FATAL.values(), ids=FATAL)
def test_a_file_that_is_not_cocos_is_an_error(tmp_path: Path, content: Any, message: str) -> None:
    write_json(tmp_path, "val", content)
    with pytest.raises(UserError, match=rf"person_keypoints_val2017\.json: .*{message}"):
        coco.load(layouts.layout(tmp_path, "val").annotations)


def test_bytes_that_are_no_text_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"val2017\.json: no such file"):
        coco.load(layouts.layout(tmp_path, "val").annotations)
    write_json(tmp_path, "val", "").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UserError, match=r"val2017\.json: not valid JSON"):
        coco.load(layouts.layout(tmp_path, "val").annotations)
    write_json(tmp_path, "val", "").write_text('{"images": "é"}', encoding="latin-1")
    with pytest.raises(UserError, match=r"val2017\.json: not valid JSON: not UTF-8 \(.* at byte 12\)"):
        coco.load(layouts.layout(tmp_path, "val").annotations)


# --- files with coordinates of another kind -----------------------------------------------------------------


def people_at(*boxes: tuple[float, float, float, float], **changes: Any) -> list[Record]:
    """People with keypoints in two corners of their boxes and a mask that fills them."""
    people = []
    for number, (x, y, w, h) in enumerate(boxes):
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        keypoints = [x + 1, y + 1, 2, x + w - 1, y + h - 1, 2, *[0] * 45]
        people.append(person(number, 1, bbox=[x, y, w, h], keypoints=keypoints, segmentation=[corners]))
    return [record | changes for record in people]


PLACES = [(10.0, 5.0, 12.0, 20.0), (20.0, 2.0, 8.0, 20.0), (2.0, 12.0, 20.0, 12.0), (24.0, 4.0, 14.0, 25.0)]


def scaled(values: list[float], *factors: float) -> list[float]:
    return [value * factor for value, factor in zip(values, itertools.cycle(factors), strict=False)]


OTHER_UNITS: dict[str, tuple[Callable[[Record], Record], str]] = {
    "keypoint fractions": (
        lambda p: {"keypoints": scaled(p["keypoints"], 1 / WIDTH, 1 / HEIGHT, 1)},
        "keypoints of 4 of 4 people looked at are fractions of the image",
    ),
    "box fractions": (
        lambda p: {"bbox": scaled(p["bbox"], 1 / WIDTH, 1 / HEIGHT)},
        "bbox of 4 of 4 people looked at are fractions",
    ),
    "mask fractions": (
        lambda p: {"segmentation": [scaled(p["segmentation"][0], 1 / WIDTH, 1 / HEIGHT)]},
        "segmentation of 4 of 4 people looked at are fractions",
    ),
    "corners": (
        lambda p: {"bbox": [*p["bbox"][:2], p["bbox"][0] + p["bbox"][2], p["bbox"][1] + p["bbox"][3]]},
        r"people looked at is two corners, \(x0, y0, x1, y1\); COCO's is \(x, y, width, height\)",
    ),
    "centre": (
        lambda p: {
            "bbox": [p["bbox"][0] + p["bbox"][2] / 2, p["bbox"][1] + p["bbox"][3] / 2, *p["bbox"][2:]]
        },
        "people looked at is its centre and size",
    ),
    "swapped": (
        lambda p: {"bbox": [p["bbox"][1], p["bbox"][0], p["bbox"][3], p["bbox"][2]]},
        r"people looked at is \(y, x, height, width\)",
    ),
}


@pytest.mark.parametrize(("write", "cause"), OTHER_UNITS.values(), ids=OTHER_UNITS)
def test_a_file_of_other_units_is_refused_in_a_sentence(
    tmp_path: Path, write: Callable[[Record], Record], cause: str
) -> None:
    people = people_at(*PLACES)
    write_layout(tmp_path, "val", [image(1)], people)
    assert all(isinstance(found, Person) for found in read(tmp_path)[1])
    write_layout(tmp_path, "val", [image(1)], [p | write(p) for p in people])
    with pytest.raises(UserError, match=rf"person_keypoints_val2017\.json: .*{cause}"):
        read(tmp_path)


def test_corners_without_masks_are_refused_too(tmp_path: Path) -> None:
    people = [p | OTHER_UNITS["corners"][0](p) for p in people_at(*PLACES, segmentation=[])]
    write_layout(tmp_path, "val", [image(1)], people)
    with pytest.raises(UserError, match="two corners"):
        read(tmp_path)


# --- real ones ----------------------------------------------------------------------------------------------


@pytest.mark.testdata
@pytest.mark.parametrize(
    ("split", "images", "with_keypoints", "showing", "without_keypoints", "crowds"),
    [("train", 80, 86, 28, 81, 5), ("val", 79, 68, 32, 49, 1)],
)
def test_coco_mini(
    coco_mini: Path,
    *,
    split: Any,
    images: int,
    with_keypoints: int,
    showing: int,
    without_keypoints: int,
    crowds: int,
) -> None:
    layout = layouts.layout(coco_mini, split)
    records = coco.load(layout.annotations)
    found = [image for image in coco.check_images(layout, records.images) if isinstance(image, Image)]
    by_id = coco.images_by_id(records.images, found)
    checked = coco.check_people(layout, records.people, by_id, KEYPOINTS)
    people = [p for p in checked if isinstance(p, Person)]
    assert (len(found), len(people)) == (len(records.images), len(records.people))
    assert len(found) == images
    labelled = [p for p in people if p.annotation.visibility.any()]
    assert (len(labelled), len({p.image_id for p in labelled})) == (with_keypoints, showing)
    assert sum(p.annotation.crowd for p in people) == crowds
    assert len(people) - len(labelled) - crowds == without_keypoints
    masks_match_pycocotools(records.people, people, by_id)
    validate(coco.people_table({split: people}))


def masks_match_pycocotools(records: list[Any], people: list[Person], images: dict[int, Any]) -> None:
    for record, found in zip(records, people, strict=True):
        size = images[found.image_id].height, images[found.image_id].width
        encoded = mask_api.frPyObjects(record["segmentation"], *size)
        expected = mask_api.merge(encoded) if isinstance(encoded, list) else encoded
        assert found.annotation.rle == expected["counts"]


# --- what other files leave out -----------------------------------------------------------------------------

NOTES: dict[str, tuple[dict[str, Any], str]] = {
    "no mask": ({"segmentation": None}, "no mask"),
    "no polygon": ({"segmentation": []}, "no mask"),
    "a polygon of nothing": ({"segmentation": [[]]}, "no mask"),
    "an object of nothing": ({"segmentation": {}}, "no mask"),
    "no box": ({"bbox": None}, "box from the mask"),
    "a box of zeros": ({"bbox": [0, 0, 0, 0.0]}, "box from the mask"),
    "no area": ({"area": 0}, ""),
    "visibility 3": ({"keypoints": [12, 8, 2, 9, 9, 3] + [0] * 45}, "visibility 3 is unlabelled"),
    "confidence": (
        {"keypoints": [12, 8, 0.9, 14, 7, 0] + [0] * 45},
        "visibility that is a confidence is visible",
    ),
    "keypoint outside": (
        {"keypoints": [12, 8, 2, 41.5, 8, 1] + [0] * 45},
        "keypoints outside the image are unlabelled",
    ),
    "box reaches out": ({"bbox": [10, 5, 40, 20]}, "box cut off at the image's border"),
    "string ids": ({"id": "5", "image_id": "1", "category_id": "1"}, ""),
    "no crowd flag": ({"iscrowd": None, "num_keypoints": None}, ""),
}


@pytest.mark.parametrize(("changes", "note"), NOTES.values(), ids=NOTES)
def test_what_is_inferred_is_noted(tmp_path: Path, changes: dict[str, Any], note: str) -> None:
    found = only_person(tmp_path, **changes)
    assert found.notes == ((note,) if note else ())
    assert found.annotation.id == 5


def test_a_keypoint_that_is_inferred_to_be_unlabelled_is_zero(tmp_path: Path) -> None:
    found = only_person(tmp_path, keypoints=[12, 8, 2, 41.5, 8, 1, 9, 9, 3] + [0] * 42).annotation
    assert found.keypoints[:3].tolist() == [[12, 8], [0, 0], [0, 0]]
    assert found.visibility[:3].tolist() == [2, 0, 0]


def test_coordinates_of_unlabelled_keypoints_are_not_read(tmp_path: Path) -> None:
    nothing = [None, None, 0, math.nan, math.nan, 0.0, -1, -1, 0, None, None, None]
    found = only_person(tmp_path, keypoints=[12, 8, 2, *nothing, *[0] * 36]).annotation
    assert found.keypoints[:5].tolist() == [[12, 8]] + [[0, 0]] * 4
    assert found.visibility[:5].tolist() == [2, 0, 0, 0, 0]


def test_without_area_it_is_the_masks_or_half_of_the_box(tmp_path: Path) -> None:
    assert only_person(tmp_path, area=None).annotation.area == 200
    maskless = only_person(tmp_path, area=None, segmentation=[])
    assert maskless.annotation.area == pytest.approx(0.53 * 10 * 20)
    assert maskless.notes == ("no mask", "area from the box")


@pytest.mark.parametrize("stated", ["their\\root\\in\\1.jpg", "http://localhost/files/in/1.jpg"])
def test_folders_in_front_that_do_not_exist_are_left_out(tmp_path: Path, stated: str) -> None:
    write_layout(tmp_path, "val", [image(1, file_name=stated)], [])
    write_image(tmp_path / "val2017/in/1.jpg")
    (found,), _ = read(tmp_path)
    assert isinstance(found, Image), found
    assert found.file_name == "val2017/in/1.jpg"


@pytest.mark.parametrize(
    ("stated", "stored"),
    [
        ("upload/my%20photo%20%C3%A9.jpg", "my photo é.jpg"),
        ("in%2F1.jpg", "in/1.jpg"),
        ("100%25.jpg", "100%25.jpg"),
    ],
)
def test_file_names_may_be_percent_encoded(tmp_path: Path, stated: str, stored: str) -> None:
    write_json(tmp_path, "val", document([image(1, file_name=stated)], []))
    write_image(tmp_path / "val2017" / stored)
    (found,), _ = read(tmp_path)
    assert isinstance(found, Image), found
    assert found.file_name == f"val2017/{stored}"


def test_a_percent_encoded_name_does_not_leave_the_folder(tmp_path: Path) -> None:
    write_json(tmp_path, "val", document([image(1, file_name="%2e%2e/1.jpg")], []))
    write_image(tmp_path / "1.jpg")
    (tmp_path / "val2017").mkdir()
    (found,), _ = read(tmp_path)
    assert isinstance(found, Reject)
