import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pycocotools import mask as rle

from personlab import tables
from personlab.errors import UserError
from personlab.params import Params
from personlab.skeleton import KEYPOINTS, K
from personlab.stages import evaluate

HEIGHT, WIDTH = 120, 160


def jpeg(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), colour).save(file, "JPEG")
    return file.getvalue()


def rectangle(x: int, y: int, w: int, h: int) -> bytes:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return rle.encode(mask)["counts"]


def lattice(x: int, y: int, w: int, h: int) -> list[float]:
    points = [(x + w * (k % 4 + 0.5) / 4, y + h * (k // 4 + 0.5) / 5) for k in range(K)]
    return [coordinate for point in points for coordinate in point]


def person(number: int, *box: int) -> dict:
    return {
        "person_id": number,
        "keypoints": lattice(*box),
        "visibility": [2] * K,
        "confidence": [1.0] * K,
        "imputed": False,
        "box": list(box),
        "area": float(box[2] * box[3]),
        "crowd": False,
        "mask": rectangle(*box),
    }


def detection(score: float, *box: int) -> dict:
    return {
        "score": score,
        "mask_score": score,
        "keypoints": lattice(*box),
        "keypoint_scores": [score] * K,
        "mask": rectangle(*box),
    }


LEFT, RIGHT = (10, 20, 50, 80), (90, 20, 50, 80)

# Image 1: two people, both detected. 2: two, one detected. 3: no people, no detections. 4: a false positive.
PEOPLE = {1: [person(1, *LEFT), person(2, *RIGHT)], 2: [person(3, *LEFT), person(4, *RIGHT)], 3: [], 4: []}
FOUND = {
    1: [detection(0.9, *LEFT), detection(0.8, *RIGHT)],
    2: [detection(0.7, *LEFT)],
    3: [],
    4: [detection(0.6, *LEFT)],
}


def write(root: Path, people: dict = PEOPLE, found: dict = FOUND, size: tuple[int, int] = (HEIGHT, WIDTH)):
    """Two shards of two images each, and the predictions in one part."""
    shard_rows = [
        {
            "image_id": number,
            "file_name": f"{number}.jpg",
            "height": HEIGHT,
            "width": WIDTH,
            "image": jpeg((90, 120, 90)),
            "people": people[number],
        }
        for number in sorted(people)
    ]
    for part in range(2):
        rows = shard_rows[2 * part : 2 * part + 2]
        for stage, schema in (("ingest", tables.IMAGES), ("targets", tables.TARGETS)):
            path = root / f"data/{stage}/val/part-{part:05}.parquet"
            tables.write_table(pa.Table.from_pylist(rows, schema=schema), path, params_hash="0")
    rows = [
        {"image_id": number, "height": size[0], "width": size[1], "people": found[number]}
        for number in sorted(found)
    ]
    table = pa.Table.from_pylist(rows, schema=tables.PREDICTIONS)
    tables.write_table(table, root / "data/infer/part-00000.parquet", params_hash="0")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_writes_everything_the_report_needs(tmp_path):
    write(tmp_path)
    evaluate.run(Params(), tmp_path)
    files = contents(tmp_path / "data/evaluate")
    assert sorted(files) == [
        "gallery.jpg",
        "gallery/01-4.jpg",  # a false positive with score .6: .4
        "gallery/02-2.jpg",  # one of two people: .5
        "gallery/03-1.jpg",
        "report.md",
    ]
    for name, content in files.items():
        if name.endswith(".jpg"):
            assert Image.open(io.BytesIO(content)).size > (WIDTH, HEIGHT)


def test_metrics_are_those_of_the_ranking(tmp_path):
    write(tmp_path)
    evaluate.run(Params(), tmp_path)
    metrics = json.loads((tmp_path / "data/metrics/evaluate.json").read_text())
    assert list(metrics) == ["keypoints", "segm"]
    reached = 76 / 101  # recalls 0 to .75, all at precision 1; the false positive ranks below
    for task in metrics.values():
        assert task["AP"] == task["AP50"] == round(reached, 4)
    assert metrics["keypoints"]["AR"] == 0.75
    assert metrics["segm"]["AR1"] == 0.5
    assert metrics["keypoints"]["APL"] is None
    assert metrics["segm"]["APS"] is None


def test_plots_hold_the_curves_and_every_keypoint(tmp_path):
    write(tmp_path)
    evaluate.run(Params(), tmp_path)
    plots = tmp_path / "data/plots/evaluate"
    curves = json.loads((plots / "precision_recall.json").read_text())
    assert len(curves) == 2 * 3 * 101
    assert {(r["task"], r["threshold"]) for r in curves} == {
        (task, threshold)
        for task in ("keypoints", "segm")
        for threshold in ("0.50", "0.75", "mean of 0.50 to 0.95")
    }
    assert all(r["precision"] == (1 if r["recall"] <= 0.75 else 0) for r in curves)
    keypoints = json.loads((plots / "oks_per_keypoint.json").read_text())
    assert keypoints == [{"keypoint": name, "oks": 1.0, "people": 3} for name in KEYPOINTS]


def test_report_shows_the_tables(tmp_path, caplog):
    write(tmp_path)
    with caplog.at_level("INFO", logger="personlab"):
        evaluate.run(Params(), tmp_path)
    report = (tmp_path / "data/evaluate/report.md").read_text()
    for expected in (
        "| AP | AP50 | AP75 | APM | APL |",
        "| AP | AP50 | AP75 | APS |",
        "4 images\n",
        "4 annotated people (without crowds), 4 with keypoints",
        "4 detections, 3 of them confident (score at least 0.700)",
        "0.752",
        "| left ankle | 1.000 | 3 |",
        "![](gallery.jpg)",
    ):
        assert expected in report
    assert "Person keypoints" in caplog.text
    assert "0.752" in caplog.text


def test_same_input_same_bytes_and_the_gallery_may_be_small(tmp_path):
    write(tmp_path)
    params = Params.model_validate({"evaluate": {"gallery": 2}})
    evaluate.run(params, tmp_path)
    first = contents(tmp_path / "data/evaluate")
    evaluate.run(params, tmp_path)
    assert contents(tmp_path / "data/evaluate") == first
    assert [name for name in first if name.startswith("gallery/")] == ["gallery/01-4.jpg", "gallery/02-1.jpg"]


def test_no_detections_at_all_score_zero(tmp_path):
    write(tmp_path, found={number: [] for number in PEOPLE})
    evaluate.run(Params(), tmp_path)
    metrics = json.loads((tmp_path / "data/metrics/evaluate.json").read_text())
    assert metrics["keypoints"]["AP"] == metrics["segm"]["AP"] == 0
    keypoints = json.loads((tmp_path / "data/plots/evaluate/oks_per_keypoint.json").read_text())
    assert {(record["oks"], record["people"]) for record in keypoints} == {(None, 0)}


def test_images_without_people_and_detections_give_a_report_without_pictures(tmp_path):
    none = {number: [] for number in PEOPLE}
    write(tmp_path, people=none, found=none)
    evaluate.run(Params(), tmp_path)
    output = tmp_path / "data/evaluate"
    assert json.loads((tmp_path / "data/metrics/evaluate.json").read_text())["keypoints"]["AP"] is None
    assert not (output / "gallery.jpg").exists()
    assert "![]" not in (output / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"found": {1: [], 2: [], 3: []}}, r"data/infer lacks 1 images of .*data/ingest/val, first image 4"),
        ({"found": {**FOUND, 7: []}}, r"data/ingest/val lacks 1 images of .*data/infer, first image 7"),
        ({"size": (WIDTH, HEIGHT)}, r"image 1 has the size \(160, 120\) .* but \(120, 160\) in"),
        ({"people": {}, "found": {}}, "no images"),
    ],
)
def test_predictions_of_other_images_are_refused(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        evaluate.run(Params(), tmp_path)
    assert not (tmp_path / "data/evaluate").exists()


def test_missing_and_repeated_parts_are_refused(tmp_path):
    with pytest.raises(UserError, match="run the stage ingest"):
        evaluate.run(Params(), tmp_path)
    write(tmp_path)
    part = tmp_path / "data/infer/part-00000.parquet"
    part.with_name("part-00001.parquet").write_bytes(part.read_bytes())
    with pytest.raises(UserError, match=r"part-00001\.parquet: image 1 is repeated"):
        evaluate.run(Params(), tmp_path)
