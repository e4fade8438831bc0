"""The folder of a batch inference scored as COCO results are; what does not fit the annotations is named."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as rle_tools

from personlab import tables
from personlab.errors import UserError
from personlab.inference.read_run import read_run
from personlab.metrics.coco import Task, match
from personlab.metrics.files import Found, read_annotations
from personlab.utils.storage import Folder
from tests import layouts

Record = dict[str, Any]
POINTS = [12.0, 8.0, 14.5, 7.0, *[0.0] * 30]


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Two images, by the names a.jpg and b.jpg, the same person in both."""
    listed = [layouts.image(5, file_name="a.jpg"), layouts.image(3, file_name="b.jpg")]
    return layouts.write_json(
        tmp_path, "val", layouts.document(listed, [layouts.person(1, 5), layouts.person(2, 3)])
    )


def seen(number: int, name: str, height: int = layouts.HEIGHT, rle: bytes | None = None) -> Record:
    """The annotated person, found."""
    mask = np.zeros((layouts.HEIGHT, layouts.WIDTH), np.uint8, order="F")
    mask[5:25, 10:20] = 1
    counts = rle_tools.encode(mask)["counts"] if rle is None else rle
    person = {"score": 0.5, "keypoints": POINTS, "keypoint_scores": [0.5] * 17, "mask": counts}
    return {"image_id": number, "image": name, "height": height, "width": layouts.WIDTH, "people": [person]}


def run(folder: Path, *parts: Record, errors: tuple[Record, ...] = ()) -> Folder:
    """What infer-batch leaves: a part for each picture."""
    for number, row in enumerate(parts):
        table = pa.Table.from_pylist([row], schema=tables.NAMED_PREDICTIONS)
        tables.write_table(table, folder / f"part-{number:05}.parquet", params_hash="0")
    if errors:
        table = pa.Table.from_pylist(list(errors), schema=tables.FAILURES)
        tables.write_table(table, folder / "errors-00000.parquet", params_hash="0")
    (folder / "manifest.json").write_text(json.dumps({}))
    return Folder(str(folder))


def scores(found: dict[Task, Found], annotations: Path) -> dict[Task, float]:
    truth = read_annotations(annotations)
    return {task: match(truth, people, task).columns()["AP"] for task, people in found.items()}


def test_the_right_answer_scores_one_whatever_the_order_of_the_pictures(
    tmp_path: Path, annotations: Path
) -> None:
    found = run(tmp_path / "run", seen(0, "a.jpg"), seen(1, "b.jpg"), seen(2, "not annotated.jpg"))
    people = read_run(found, annotations, read_annotations(annotations))
    assert {task: people.keys() for task, people in people.items()} == {"keypoints": {5, 3}, "segm": {5, 3}}
    assert scores(people, annotations) == {"keypoints": pytest.approx(1), "segm": pytest.approx(1)}


def test_nobody_is_found_in_a_picture_that_cannot_be_read(
    tmp_path: Path, annotations: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {"image_id": 1, "image": "b.jpg", "reason": "is not a picture"}
    found = run(tmp_path / "run", seen(0, "a.jpg"), errors=(broken,))
    with caplog.at_level(logging.WARNING):
        people = read_run(found, annotations, read_annotations(annotations))
    assert "1 annotated images could not be read" in caplog.text
    assert scores(people, annotations)["keypoints"] == pytest.approx(51 / 101)  # recall of a half


def test_a_network_without_masks_is_scored_for_its_poses(tmp_path: Path, annotations: Path) -> None:
    found = run(tmp_path / "run", seen(0, "a.jpg", rle=b""), seen(1, "b.jpg", rle=b""))
    assert list(read_run(found, annotations, read_annotations(annotations))) == ["keypoints"]


def test_what_does_not_fit_is_named(tmp_path: Path, annotations: Path) -> None:
    truth = read_annotations(annotations)
    with pytest.raises(UserError, match=r"lacks 1 of the images of .*, image 3 first"):
        read_run(run(tmp_path / "few", seen(0, "a.jpg")), annotations, truth)
    other = run(tmp_path / "other", seen(0, "a.jpg"), seen(1, "b.jpg", height=20))
    with pytest.raises(UserError, match=r"b.jpg is \(20, 40\) pixels .*, annotated as \(30, 40\)"):
        read_run(other, annotations, truth)
    other.delete("manifest.json")
    with pytest.raises(UserError, match="no finished run"):
        read_run(other, annotations, truth)
