"""The same photos have the same counts, whichever command or page finds their people."""

import asyncio
import logging
import re
import shutil
from pathlib import Path

import pytest

from personlab.inference.cli import predict
from personlab.params import Infer
from personlab.people import SHOWN
from personlab.predictor import Predictor, decoding
from personlab.serving.model import Served
from personlab.weights import bodypix
from tests.batches import begin, check_truth, job, make_all

PHOTOS = ("000000034417.jpg", "000000109313.jpg")
INFER = Infer(sides=(401,), stride=16)


def test_predict_infer_batch_and_serve_count_the_same(
    coco_mini: Path, testdata: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, photos = tmp_path / "bodypix.safetensors", tmp_path / "photos"
    published = testdata / "weights/bodypix-mobilenet-075/model-stride16.json"
    bodypix.import_weights(str(published), weights, downloads=tmp_path)
    photos.mkdir()
    for name in PHOTOS:
        shutil.copyfile(coco_mini / "val2017" / name, photos / name)
    predictor = Predictor.from_checkpoint(weights, INFER)

    with caplog.at_level(logging.INFO):
        predict([str(photos)], weights=str(weights), out=tmp_path / "people", side=INFER.sides[0])
    counted = re.search(rf"(\d+) proposals, (\d+) with a score of at least {SHOWN:g};", caplog.text)
    assert counted
    by_predict = tuple(map(int, counted.groups()))
    assert by_predict[0] > by_predict[1] > 0

    make_all(begin(job(photos, weights, tmp_path / "run", infer=INFER, decode=decoding(predictor.network))))
    manifest = check_truth(tmp_path / "run")
    assert (manifest.proposals, manifest.people) == by_predict

    served = Served(lambda: weights, lambda _: predictor)
    answers = [asyncio.run(served.predict((photos / name).read_bytes())).result for name in PHOTOS]
    people, shown = (sum(len(getattr(each, name)) for each in answers) for name in ("people", "shown"))
    assert (people, shown) == by_predict
