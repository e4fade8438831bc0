"""What infer-batch and predict found, scored against annotations; images that do not match are refused."""

import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as rle_tools

from personlab import tables
from personlab.errors import UserError
from personlab.inference.read_run import check_images, read, read_run
from personlab.metrics.coco import Task, match
from personlab.metrics.files import Annotations, Found, read_annotations
from personlab.utils.storage import Folder
from tests import layouts

Record = dict[str, Any]
POINTS = [12.0, 8.0, 14.5, 7.0, *[0.0] * 30]


def annotated(folder: Path, *names: str) -> Annotations:
    """Images 5 and 3 with these names, the same person in both."""
    listed = [layouts.image(number, file_name=name) for number, name in zip((5, 3), names, strict=True)]
    people = [layouts.person(1, 5), layouts.person(2, 3)]
    return read_annotations(layouts.write_json(folder, "val", layouts.document(listed, people)))


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    return annotated(tmp_path, "a.jpg", "b.jpg")


def seen(number: int, name: str, height: int = layouts.HEIGHT, rle: bytes | None = None) -> Record:
    """The annotated person, found."""
    mask = np.zeros((layouts.HEIGHT, layouts.WIDTH), np.uint8, order="F")
    mask[5:25, 10:20] = 1
    counts = rle_tools.encode(mask)["counts"] if rle is None else rle
    person = {
        "score": 0.5,
        "keypoints": POINTS,
        "keypoint_scores": [0.5] * 17,
        "mask": counts,
    }
    size = {"height": height, "width": layouts.WIDTH, "orientation": 1}
    return {"image_id": number, "image": name, **size, "people": [person]}


def run(folder: Path, *parts: Record, errors: tuple[Record, ...] = ()) -> Folder:
    """The files of infer-batch: a part for each image."""
    for number, row in enumerate(parts):
        table = pa.Table.from_pylist([row], schema=tables.NAMED_PREDICTIONS)
        tables.write_table(table, folder / f"part-{number:05}.parquet", params_hash="0")
    if errors:
        table = pa.Table.from_pylist(list(errors), schema=tables.FAILURES)
        tables.write_table(table, folder / "errors-00000.parquet", params_hash="0")
    (folder / "manifest.json").write_text(json.dumps({}))
    return Folder(str(folder))


def scores(found: dict[Task, Found], annotations: Annotations) -> dict[Task, float]:
    return {task: match(annotations.truth, people, task).columns()["AP"] for task, people in found.items()}


def test_the_right_answer_scores_one_whatever_the_order_of_the_images(
    tmp_path: Path, annotations: Annotations
) -> None:
    found = run(tmp_path / "run", seen(0, "a.jpg"), seen(1, "b.jpg"), seen(2, "not annotated.jpg"))
    people = read_run(found, annotations)
    assert {task: people.keys() for task, people in people.items()} == {"keypoints": {5, 3}, "segm": {5, 3}}
    assert scores(people, annotations) == {"keypoints": pytest.approx(1), "segm": pytest.approx(1)}


def test_images_that_cannot_be_read_count_as_images_without_people(
    tmp_path: Path, annotations: Annotations, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {"image_id": 1, "image": "b.jpg", "reason": "is not an image"}
    found = run(tmp_path / "run", seen(0, "a.jpg"), errors=(broken,))
    with caplog.at_level(logging.WARNING):
        people = read_run(found, annotations)
    assert "1 annotated images could not be read and count as images without people" in caplog.text
    assert scores(people, annotations)["keypoints"] == pytest.approx(51 / 101)  # recall of a half


def test_a_network_without_masks_is_scored_for_its_poses(tmp_path: Path, annotations: Annotations) -> None:
    found = run(tmp_path / "run", seen(0, "a.jpg", rle=b""), seen(1, "b.jpg", rle=b""))
    assert list(read_run(found, annotations)) == ["keypoints"]


def test_what_does_not_fit_is_named(tmp_path: Path, annotations: Annotations) -> None:
    with pytest.raises(UserError, match=r"lacks 1 annotated images, first 3 \(b\.jpg\)"):
        read_run(run(tmp_path / "few", seen(0, "a.jpg")), annotations)
    other = run(tmp_path / "other", seen(0, "a.jpg"), seen(1, "b.jpg", height=20))
    with pytest.raises(UserError, match=r"b.jpg is \(20, 40\) pixels .*, annotated as \(30, 40\)"):
        read_run(other, annotations)
    other.delete("manifest.json")
    with pytest.raises(UserError, match=r"holds neither results\.json, .* nor a finished run"):
        read_run(other, annotations)


def test_names_match_however_their_accents_are_written(tmp_path: Path) -> None:
    """macOS decomposes: é is e and an accent."""
    composed, decomposed = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    for name, other in ((composed, decomposed), (decomposed, composed)):
        people = read_run(
            run(tmp_path / "run", seen(0, name), seen(1, "b.jpg")), annotated(tmp_path, other, "b.jpg")
        )
        assert people["keypoints"].keys() == {5, 3}


def test_predictions_of_a_project_are_read_by_image_id(tmp_path: Path, annotations: Annotations) -> None:
    rows = [seen(3, "b.jpg"), seen(5, "a.jpg")]
    for row in rows:
        del row["image"], row["orientation"]
    table = pa.Table.from_pylist(rows, schema=tables.PREDICTIONS)
    tables.write_table(table, tmp_path / "infer/part-00000.parquet", params_hash="0")
    (tmp_path / "infer/model.safetensors").touch()
    place = str(tmp_path / "infer")
    assert scores(read(place, annotations), annotations) == {
        "keypoints": pytest.approx(1),
        "segm": pytest.approx(1),
    }
    del annotations.images[3]
    with pytest.raises(UserError, match=r"the annotations lacks 1 images of .*infer, first image 3"):
        read(place, annotations)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_images_that_were_turned_without_a_change_of_size_are_refused(
    tmp_path: Path, annotations: Annotations, orientation: int
) -> None:
    """Their annotations mean the pixels as stored, the predictions those that EXIF shows."""
    found = run(tmp_path / "run", seen(0, "a.jpg") | {"orientation": orientation}, seen(1, "b.jpg"))
    reason = f"a.jpg.* was turned as its EXIF orientation, {orientation}, says, and annotations mean"
    with pytest.raises(UserError, match=reason):
        read_run(found, annotations)
    turned = results_beside(tmp_path, image_record(5, "a.jpg") | {"orientation": orientation})
    with pytest.raises(UserError, match=reason):
        check_images(turned, annotations)


def results_beside(folder: Path, *images: Record) -> Path:
    """The path of predict's results, beside an images.json."""
    (folder / "images.json").write_text(json.dumps(images))
    return folder / "results.json"


def image_record(number: int, file_name: str, height: int = layouts.HEIGHT) -> Record:
    return layouts.image(number, file_name=file_name, height=height)


def test_the_folder_of_predict_is_read_and_images_without_results_are_counted(
    tmp_path: Path, annotations: Annotations, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "personlab")
    person = {"category_id": 1, "keypoints": [1.0, 2.0, 0.5] * 17, "score": 0.5}
    (tmp_path / "results.json").write_text(json.dumps([{"image_id": 5} | person]))
    assert list(read(str(tmp_path), annotations)["keypoints"]) == [5]
    assert "1 of 2 annotated images have no results and count as images without people" in caplog.text


def test_results_whose_images_are_the_annotated_ones_are_accepted(
    tmp_path: Path, annotations: Annotations
) -> None:
    """Whatever the folder, suffix and case; images that are not annotated are not compared."""
    check_images(tmp_path / "results.json", annotations)
    ours = image_record(5, "in/a.jpg"), image_record(3, "/photos/B.png"), image_record(4, "c.jpg")
    check_images(results_beside(tmp_path, *ours), annotations)
    cocos = annotated(tmp_path, "COCO_val2014_000000000005.jpg", "000000000003.jpg")
    check_images(results_beside(tmp_path, image_record(5, "5.jpg"), image_record(3, "003.png")), cocos)
    check_images(results_beside(tmp_path, image_record(5, "b.jpg")), annotated(tmp_path, "", ""))
    check_images(results_beside(tmp_path, {"id": 5, "name": "of another program"}), annotations)


def test_results_of_other_images_with_the_same_ids_are_refused(
    tmp_path: Path, annotations: Annotations
) -> None:
    """predict numbers images from 1 unless their names are COCO's."""
    swapped = results_beside(tmp_path, image_record(3, "in/a.jpg"), image_record(5, "in/b.jpg"))
    with pytest.raises(UserError, match=r"image 3 is in/a.jpg \(images.json\), but b.jpg .*--annotations"):
        check_images(swapped, annotations)
    with pytest.raises(
        UserError, match=r"image 1 is in/a.jpg \(images.json\), but missing in the annotations"
    ):
        check_images(results_beside(tmp_path, image_record(1, "in/a.jpg")), annotations)
    with pytest.raises(UserError, match=r"image 5 is in/cat.jpg"):
        check_images(results_beside(tmp_path, image_record(5, "in/cat.jpg")), annotations)
    with pytest.raises(UserError, match=r"a.jpg, is \(20, 40\) pixels .*, annotated as \(30, 40\)"):
        check_images(results_beside(tmp_path, image_record(5, "a.jpg", height=20)), annotations)
