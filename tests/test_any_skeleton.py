"""Annotation files of other projects, with other keypoints. tests/test_pipeline.py trains on such."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from personlab.codec.decode import Decoder
from personlab.data import coco
from personlab.metrics import oracle
from personlab.params import Params
from personlab.stages import acquire, ingest
from personlab.tables import read_dataset


def quiet(items: Iterable[Any], **options: Any) -> Any:
    return items


@pytest.mark.testdata
def test_other_projects_annotations_survive_encoding_and_decoding(testdata: Path) -> None:
    """Animals, hands, insects, clothes, whole bodies; 14 to 294 keypoints, most without masks."""
    files = sorted((testdata / "keypoint-zoo").glob("*/*.json"))
    assert len(files) == 15
    for path in files:
        found = oracle.read(path)
        decoder = Decoder(trace_refinements=0, long_refinements=0, skeleton=found.skeleton)
        report = oracle.score(found.truth, decoder, side=801, stride=8, complete=True, progress=quiet)
        assert report.keypoints.columns()["AP"] >= 0.97, path


@pytest.mark.testdata
def test_other_projects_annotations_are_ingested(testdata: Path, tmp_path: Path) -> None:
    for path in sorted((testdata / "keypoint-zoo").glob("*/*.json")):
        layout = {"train": path.name, "train_images": ".", "val": None, "val_share": 0.4}
        source = {"source": "directory", "directory": str(path.parent), "layout": layout}
        params = Params.model_validate(
            {"acquire": source, "ingest": {"train_images_with_people_only": False}}
        )
        acquire.run(params, tmp_path)
        ingest.run(params, tmp_path)
        counts = json.loads((tmp_path / "data/metrics/ingest.json").read_bytes())
        assert all(each[kind]["rejected"] == 0 for each in counts.values() for kind in ("images", "people"))
        records = coco.load(path)
        assert sum(each["people"]["out"] for each in counts.values()) == len(records.people)
        assert read_dataset(tmp_path / "data").skeleton.keypoints == records.category.keypoints
