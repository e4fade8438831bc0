"""YOLO pose datasets as COCO annotations, and through acquire and ingest."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from personlab.data import yolo
from personlab.errors import UserError
from personlab.params import Acquire, Ingest, Params
from personlab.stages import acquire, ingest
from personlab.tables import read_dataset

LINE = "0 0.5 0.5 0.4 0.5 0.4 0.4 2 0.6 0.6 1"  # class, box, two keypoints
CONTENT: dict[str, Any] = {
    "train": "images/train",
    "val": "images/val",
    "kpt_shape": [2, 3],
    "flip_idx": [1, 0],
    "names": {0: "tiger"},
}


def write(root: Path, lines: str = LINE, **changes: Any) -> Path:
    """Two images of 40 x 20 pixels in each split; the first shows what `lines` say, the second no one."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            path = root / "images" / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 20)).save(path)
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        (root / "labels" / split / "a.txt").write_text(f"{lines}\n\n")
    (root / "data.yaml").write_text(yaml.safe_dump(CONTENT | changes))
    return root


def test_fractions_become_pixels(tmp_path: Path) -> None:
    found = yolo.to_coco(write(tmp_path), "train")
    assert found["images"] == [
        {"id": 1, "file_name": "images/train/a.png", "height": 20, "width": 40},
        {"id": 2, "file_name": "images/train/b.png", "height": 20, "width": 40},
    ]
    (person,) = found["annotations"]
    assert person["bbox"] == pytest.approx([12, 5, 16, 10])
    assert person["keypoints"] == pytest.approx([16, 8, 2, 24, 12, 1])
    assert (person["id"], person["image_id"], person["category_id"]) == (1, 1, 0)
    assert found["categories"] == [{"id": 0, "name": "tiger", "keypoints": [], "flip_idx": [1, 0]}]


def test_without_visibility_the_origin_is_unlabelled(tmp_path: Path) -> None:
    root = write(tmp_path, "0 0.5 0.5 0.4 0.5 0.4 0.4 0 0", kpt_shape=[2, 2])
    assert yolo.to_coco(root, "val")["annotations"][0]["keypoints"] == pytest.approx([16, 8, 2, 0, 0, 0])


@pytest.mark.parametrize("train", ["images/train", "../images/train", "{}/images/train", ["images/train"]])
@pytest.mark.parametrize("path", [None, ".", "../tigers", "../datasets/tiger-pose", "{}"])
def test_images_are_found_wherever_they_are_said_to_be(tmp_path: Path, train: Any, path: str | None) -> None:
    root = tmp_path / "tigers"
    train = train.format(root) if isinstance(train, str) else train
    write(root, train=train, path=path and path.format(root))
    names = [image["file_name"] for image in yolo.to_coco(root, "train")["images"]]
    assert names == ["images/train/a.png", "images/train/b.png"]


@pytest.mark.parametrize("line", ["images/train/a.png", "./images/train/a.png", "/data/x/images/train/a.png"])
def test_images_may_be_listed_in_a_text_file_as_cvat_does(tmp_path: Path, line: str) -> None:
    root = write(tmp_path, train="train.txt")
    (root / "train.txt").write_text(f"{line}\n")
    assert [image["file_name"] for image in yolo.to_coco(root, "train")["images"]] == ["images/train/a.png"]
    (root / "train.txt").write_text("../../etc/passwd\n")
    with pytest.raises(UserError, match=r"train\.txt: '\.\./\.\./etc/passwd' is no file inside the dataset"):
        yolo.to_coco(root, "train")


def test_keypoint_names_of_a_class_are_taken(tmp_path: Path) -> None:
    root = write(tmp_path, kpt_names={0: ["left_eye", "right_eye"]})
    assert yolo.to_coco(root, "train")["categories"][0]["keypoints"] == ["left_eye", "right_eye"]


@pytest.mark.parametrize(
    ("lines", "changes", "reason"),
    [
        ("0 0.5 0.5 0.4", {}, r"labels/val/a\.txt, line 1: 4 numbers, not 11: class, box of 4, 2 keypoints"),
        (f"{LINE}\n{LINE}x", {}, r"a\.txt, line 2: could not convert"),
        (f"{LINE[:-1]}nan\n0", {}, r"line 1: holds a number that is not finite \(and 1 more lines\)"),
        (f"1{LINE[1:]}", {}, r"line 1: class 1 is not in 'names' of data\.yaml"),
        (LINE, {"names": 3}, r"data\.yaml: names is 3, neither a list nor numbers with names"),
        (LINE, {"kpt_names": {0: 5}}, r"kpt_names is \{0: 5\}, not a list of names for each class"),
        (LINE, {"flip_idx": [0]}, r"flip_idx is \[0\], not pairs of 2 keypoints, from 0"),
        (LINE, {"kpt_shape": None}, r"data\.yaml: kpt_shape is None, not \[number of keypoints, 2 or 3\]"),
        (LINE, {"val": [1, 2]}, r"'val' is \[1, 2\], not a folder of images"),
        (LINE, {"val": "elsewhere"}, "elsewhere: nothing of that name inside the dataset"),
        (LINE, {"val": "labels"}, "labels: no images in it"),
        ("", {}, r"labels/val/a\.txt: no label in it or any other text file of 'val'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, lines: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        yolo.to_coco(write(tmp_path, lines, **changes), "val")


def test_a_folder_without_its_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.yaml: no such file; acquire\.directory is the folder"):
        yolo.to_coco(tmp_path, "train")


def test_it_goes_through_acquire_and_ingest(tmp_path: Path) -> None:
    write(tmp_path / "yolo")
    params = Params(
        acquire=Acquire(source="yolo", directory="yolo"), ingest=Ingest(train_images_with_people_only=False)
    )
    acquire.run(params, tmp_path)
    ingest.run(params, tmp_path)
    dataset = read_dataset(tmp_path / "data")
    assert (dataset.skeleton.name, dataset.skeleton.flip, dataset.masks) == ("tiger", (1, 0), False)
    images = pq.read_table(tmp_path / "data/ingest/val/part-00000.parquet")
    assert images["file_name"].to_pylist() == ["images/val/a.png", "images/val/b.png"]
    people = pq.read_table(tmp_path / "data/ingest/people.parquet").to_pylist()
    assert [(p["keypoints"], p["mask"], p["area"]) for p in people] == [
        ([16, 8, 24, 12], b"", pytest.approx(0.53 * 16 * 10))
    ] * 2
