"""The same photos have the same counts, whichever command, flow or page finds their people."""

import asyncio
import json
import logging
import re
import shutil
from pathlib import Path

import pytest

from flows.batch_inference import Batch, batch_inference
from personlab.inference.cli import predict
from personlab.params import Acquire, Infer, Ingest, Params
from personlab.people import SHOWN
from personlab.predictor import Predictor, decoding
from personlab.report.page import Results
from personlab.serving.model import Served
from personlab.stages import acquire, infer, ingest
from personlab.utils.files import write_json
from personlab.weights import bodypix
from tests.batches import begin, check_truth, job, make_all
from tests.served import run_of, table_of

PHOTOS = ("000000034417.jpg", "000000109313.jpg")
INFER = Infer(sides=(401,), stride=16)
COUNTED = re.compile(rf"(\d+) proposals, (\d+) with a score of at least {SHOWN:g}")

Counts = tuple[int, ...]  # proposals, and those with a score of at least SHOWN


@pytest.fixture(scope="module")
def weights(testdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    published = testdata / "weights/bodypix-mobilenet-075/model-stride16.json"
    bodypix.import_weights(str(published), folder / "model.safetensors", downloads=folder)
    return folder / "model.safetensors"


def counts_in(text: str) -> Counts:
    counted = COUNTED.search(text)
    assert counted, text
    return tuple(map(int, counted.groups()))


def predicted(photos: Path, weights: Path, out: Path, caplog: pytest.LogCaptureFixture) -> Counts:
    """The counts of `personlab predict`."""
    with caplog.at_level(logging.INFO):
        predict([str(photos)], weights=str(weights), out=out, side=INFER.sides[0])
    counts = counts_in(caplog.text)
    assert counts[0] > counts[1] > 0
    return counts


def test_predict_infer_batch_and_serve_count_the_same(
    coco_mini: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in PHOTOS:
        shutil.copyfile(coco_mini / "val2017" / name, photos / name)
    predictor = Predictor.from_checkpoint(weights, INFER)
    by_predict = predicted(photos, weights, tmp_path / "people", caplog)

    make_all(begin(job(photos, weights, tmp_path / "run", infer=INFER, decode=decoding(predictor.network))))
    manifest = check_truth(tmp_path / "run")
    assert (manifest.proposals, manifest.people) == by_predict

    served = Served(lambda: weights, lambda _: predictor)
    answers = [asyncio.run(served.predict((photos / name).read_bytes())).result for name in PHOTOS]
    people, shown = (sum(len(getattr(each, name)) for each in answers) for name in ("people", "shown"))
    assert (people, shown) == by_predict


def copy_photos(source: Path, split: str, target: Path, count: int) -> None:
    """The first photos of a split, those with people first, and their annotations."""
    document = json.loads((source / f"annotations/person_keypoints_{split}.json").read_bytes())
    peopled = {person["image_id"] for person in document["annotations"]}
    document["images"].sort(key=lambda image: (image["id"] not in peopled, image["id"]))
    document["images"] = document["images"][:count]
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [each for each in document["annotations"] if each["image_id"] in kept]
    (target / split).mkdir(parents=True)
    for image in document["images"]:
        shutil.copyfile(source / split / image["file_name"], target / split / image["file_name"])
    write_json(target / f"annotations/person_keypoints_{split}.json", document)


@pytest.mark.slow
def test_predict_the_flow_and_the_report_count_the_same(
    coco_mini: Path,
    weights: Path,
    prefect_server: None,
    ray_local: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for split in ("train2017", "val2017"):
        copy_photos(coco_mini, split, tmp_path / "photos", 8)
    photos = tmp_path / "photos/val2017"
    by_predict = predicted(photos, weights, tmp_path / "people", caplog)

    batch = Batch(
        images=str(photos), out="found", weights=str(weights), sides=list(INFER.sides), ray_address=ray_local
    )
    flow = batch_inference(batch, tmp_path, return_state=True)
    assert counts_in(str(flow.message)) == by_predict
    table = {row["what"]: row["value"] for row in table_of(run_of(flow), "batch-counts")}
    assert (table["images"], table["proposals"], table["people"]) == (8, *by_predict)

    params = Params(
        acquire=Acquire(source="directory", directory=str(tmp_path / "photos")),
        ingest=Ingest(max_reject_fraction=1),
        infer=INFER,
        decode=decoding(Predictor.from_checkpoint(weights, INFER).network),
    )
    acquire.run(params, tmp_path)
    ingest.run(params, tmp_path)
    shutil.copytree(weights.parent, tmp_path / "data/train")
    infer.run(params, tmp_path)
    (tmp_path / "params.yaml").write_text(params.model_dump_json())
    write_json(tmp_path / "data/metrics/targets.json", {"train": {"images": 8}, "val": {"images": 8}})
    assert counts_in("\n".join(Results(tmp_path, None).facts)) == by_predict
