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
from personlab.metrics.coco import ground_truth, match
from personlab.params import Params
from personlab.skeleton import COCO_PERSON
from personlab.stages import evaluate
from personlab.tables import shards
from personlab.utils.files import read_tsv
from tests.coco_person import KEYPOINTS, K

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
    tables.Dataset(COCO_PERSON, masks=True).write(root / "data/ingest")
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
        "gallery.json",
        "gallery/01-2.jpg",  # one of two people: .5
        "gallery/02-1.jpg",
        "report.md",
    ]
    assert json.loads(files["gallery.json"]) == [
        {"file": "01-2.jpg", "image_id": 2, "annotated": True, "detected": 1, "poses": 0.5, "masks": 0.5},
        {"file": "02-1.jpg", "image_id": 1, "annotated": True, "detected": 2, "poses": 1.0, "masks": 1.0},
    ]
    for name, content in files.items():
        if name.endswith(".jpg"):
            assert Image.open(io.BytesIO(content)).size > (WIDTH, HEIGHT)


def test_confident_false_alarms_follow_and_images_of_nothing_are_left_out(tmp_path):
    write(tmp_path, found=FOUND | {4: [detection(0.75, *LEFT)]})
    evaluate.run(Params(), tmp_path)
    assert [r["file"] for r in json.loads((tmp_path / "data/evaluate/gallery.json").read_text())] == [
        *("01-2.jpg", "02-1.jpg"),
        "03-4.jpg",
    ]


def test_a_person_has_one_colour_on_both_sides(tmp_path):
    """Detections of the people in the other order, and a false one between them."""
    found = {1: [detection(0.9, *RIGHT), detection(0.8, 50, 20, 30, 80), detection(0.75, *LEFT)]}
    write(tmp_path, found=FOUND | found)
    images = shards.annotated(tmp_path / "data/ingest/val", tmp_path / "data/targets/val")
    seen = shards.detections(tmp_path / "data/infer", images, tmp_path / "data/ingest/val")
    matches = match(ground_truth(images.values(), skeleton=COCO_PERSON), seen, "keypoints")
    assert matches.partners(1) == {0: 1, 2: 0}
    assert matches.partners(3) == matches.partners(4) == {}


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


def test_errors_are_in_metrics_plots_and_report(tmp_path):
    """Of three people found, one has a wrist at the wrong place; one person is missed, one false."""
    wrong = detection(0.7, *LEFT)
    wrong["keypoints"][2 * KEYPOINTS.index("left_wrist")] += 1000.0
    write(tmp_path, found=FOUND | {2: [wrong]})
    evaluate.run(Params(), tmp_path)
    metrics = json.loads((tmp_path / "data/metrics/evaluate.json").read_text())
    assert {name for name in metrics["keypoints"] if name.startswith("AP_without_")} == {
        f"AP_without_{error}"
        for error in (
            *("jitter", "inversion", "swap", "miss"),
            *("wrong_scores", "duplicates", "false_positives", "missed_people"),
        )
    }
    reached = round(76 / 101, 4)
    assert metrics["keypoints"]["AP"] < reached
    assert metrics["keypoints"]["AP_without_miss"] == reached
    assert metrics["segm"]["AP_without_missed_people"] == 1
    records = json.loads((tmp_path / "data/plots/evaluate/errors_per_keypoint.json").read_text())
    shares = {(record["keypoint"], record["kind"]): record["share"] for record in records}
    assert shares["left_wrist", "miss"] == round(1 / 3, 4)
    assert shares["nose", "good"] == 1
    assert len(shares) == 5 * K
    report = (tmp_path / "data/evaluate/report.md").read_text()
    for expected in (
        "## Errors: keypoints",
        "3 people matched, 1 missed; 0 duplicates, 1 false positives, 0 detections",
        "| size | good | jitter | inversion | swap | miss | keypoints |",
        "| left wrist | 0.667 | 0.000 | 0.000 | 0.000 | 0.333 | 3 |",
        "| lost to background |",
        "| missed people | 1.000 | – | 1.000 | – | +0.248 |",
    ):
        assert expected in report


def test_plots_hold_the_curves_and_every_keypoint(tmp_path):
    write(tmp_path)
    evaluate.run(Params(), tmp_path)
    plots = tmp_path / "data/plots/evaluate"
    recalls, *curves = read_tsv(plots / "precision_recall.tsv").values()
    assert recalls == pytest.approx(np.linspace(0, 1, 101))
    assert len(curves) == 2 * 3
    assert all(curve == [1.0 if recall <= 0.75 else 0.0 for recall in recalls] for curve in curves)
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
        "4 detections, 3 of them confident (score at least 0.700, at which F1 of keypoints at OKS 0.50 "
        "is highest)",
        "0.752",
        "| left ankle | 1.000 | 3 |",
        "![](gallery.jpg)",
    ):
        assert expected in report
    assert "Keypoints" in caplog.text
    assert "0.752" in caplog.text


def test_same_input_same_bytes_and_the_gallery_may_be_small(tmp_path):
    write(tmp_path)
    params = Params.model_validate({"evaluate": {"gallery": 2}})
    evaluate.run(params, tmp_path)
    first = contents(tmp_path / "data/evaluate")
    evaluate.run(params, tmp_path)
    assert contents(tmp_path / "data/evaluate") == first
    assert [name for name in first if name.startswith("gallery/")] == ["gallery/01-2.jpg", "gallery/02-1.jpg"]


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
