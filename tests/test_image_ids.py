"""Image ids: COCO's numbers, positions, or an annotation file's ids by file name, and an error on doubt."""

import re
import unicodedata
from pathlib import Path

import pytest

from personlab.data.coco import Image
from personlab.errors import UserError
from personlab.inference.image_ids import AnnotatedImages, number_images
from tests import layouts


def annotated(folder: Path, *file_names: str, **changes: object) -> AnnotatedImages:
    """Images 1, 2, 3, ... with these names, in a file without annotations."""
    listed = [layouts.image(number, file_name=name) for number, name in enumerate(file_names, start=1)]
    content = layouts.document(listed, []) | changes
    return AnnotatedImages.read(layouts.write_json(folder, "val", layouts.without(content, "annotations")))


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["000000000139.jpg", "000000000042.jpg"], [139, 42]),
        (["val/COCO_val2014_000000000139.jpg", "7.png"], [139, 7]),
        (["000000000139.jpg", "me.jpg"], [1, 2]),
        (["139.jpg", "000000000139.jpg"], [1, 2]),
        (["٣.jpg"], [1]),
        (["7.parquet#3"], [1]),
    ],
)
def test_images_are_numbered_as_coco_does_if_all_names_are_cocos(names: list[str], ids: list[int]) -> None:
    assert list(number_images(names)) == ids


@pytest.mark.parametrize(
    ("file_names", "path", "number"),
    [
        (["a.jpg", "b.jpg"], "/photos/b.jpg", 2),
        (["train/1.jpg", "val/1.jpg"], "/data/coco/val/1.jpg", 2),
        (["1.jpg", "001.jpg"], "/photos/001.jpg", 2),
        (["a.jpg", "a.png"], "/photos/a.png", 2),
        (["a.jpg"], "/photos/a.webp", 1),
        (["000000000139.jpg"], "/photos/COCO_val2014_000000000139.jpg", 1),
        (["/home/someone/images/a.jpg"], "/photos/a.jpg", 1),
        (["images\\b.jpg", "images\\a.jpg"], "/photos/images/a.jpg", 2),
        ([unicodedata.normalize("NFC", "é.jpg")], unicodedata.normalize("NFD", "/photos/é.jpg"), 1),
    ],
)
def test_an_image_is_found_by_its_file_name(
    tmp_path: Path, file_names: list[str], path: str, number: int
) -> None:
    image = annotated(tmp_path, *file_names).find(path)
    assert isinstance(image, Image)
    assert image.id == number


@pytest.mark.parametrize(
    ("file_names", "path", "reason"),
    [
        (["a.jpg"], "/photos/b.jpg", "is not among the images of .*val2017.json"),
        (["train/1.jpg", "val/1.jpg"], "/photos/1.jpg", "may be train/1.jpg or val/1.jpg of"),
        (["a.jpg", "a.png"], "/photos/a.webp", "may be a.jpg or a.png of"),
    ],
)
def test_doubt_is_an_error(tmp_path: Path, file_names: list[str], path: str, reason: str) -> None:
    found = annotated(tmp_path, *file_names).find(path)
    assert isinstance(found, UserError)
    assert re.match(reason, str(found))


def test_the_file_with_most_in_common_is_the_image_and_a_tie_is_an_error(tmp_path: Path) -> None:
    images = annotated(tmp_path, "val/1.jpg", "2.jpg")
    found = images.assign(["/in/train/1.jpg", "/in/val/1.jpg", "/in/a/2.jpg", "/in/b/2.jpg", "/in/3.jpg"])
    assert [getattr(image, "id", None) for image in found] == [None, 1, None, None, None]
    assert [str(reason).partition(" of ")[0] for reason in found if isinstance(reason, UserError)] == [
        *("may be val/1.jpg", "may be 2.jpg", "may be 2.jpg", "is not among the images")
    ]


def test_the_category_is_the_files(tmp_path: Path) -> None:
    assert annotated(tmp_path, "a.jpg", categories=[{"id": 0, "name": "Person"}]).person == 0
    with pytest.raises(
        UserError, match="'categories' must name 'person' once, not 0 times; its categories: car"
    ):
        annotated(tmp_path, "a.jpg", categories=[{"id": 0, "name": "car"}])
