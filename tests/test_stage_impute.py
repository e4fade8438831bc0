"""The batches of the stage estimator, and the stage impute, on a few rendered images.

tests/test_pipeline.py trains an estimator.
"""

import json
import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from personlab import params, tables
from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.model.estimator import Estimator
from personlab.params import Acquire, Impute, Params, Sample
from personlab.people import Annotation
from personlab.skeleton import COCO_PERSON
from personlab.stages import acquire, estimator, impute, ingest
from personlab.tables.shards import row_groups
from tests.coco_person import K

PARAMS = Params(
    acquire=Acquire(sample=Sample(train_images=16, val_images=6, width=320, height=240, seed=5)),
    estimator=params.Estimator(width=4, batch=4),
    impute=Impute(min_score=0.0),
)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after ingest, without the image files."""
    root = tmp_path_factory.mktemp("project")
    acquire.run(PARAMS, root)
    ingest.run(PARAMS, root)
    shutil.rmtree(root / "data/acquire")
    return root


@pytest.fixture(scope="module")
def imputed(ingested: Path, ray_local: None) -> Path:
    """The project after impute with an untrained estimator."""
    save_estimator(ingested / "data/estimator/estimator.safetensors")
    impute.run(PARAMS, ingested)
    return ingested


def save_estimator(path: Path) -> Path:
    torch.manual_seed(0)
    network = Estimator(PARAMS.estimator, skeleton=COCO_PERSON)
    path.parent.mkdir(exist_ok=True)
    checkpoint.save(path, network.state_dict(), network.card({}))
    return path


def damage(project: Path, copy: Path) -> None:
    """Copy a project, with training images that cannot be decoded."""
    shutil.copytree(project / "data/ingest", copy / "data/ingest")
    for part in (copy / "data/ingest/train").iterdir():
        rows = [row | {"image": b"no image"} for row in tables.read_table(part, tables.IMAGES).to_pylist()]
        tables.write_table(pa.Table.from_pylist(rows, schema=tables.IMAGES), part, params_hash="")


def people(root: Path, stage: str) -> list[dict[str, Any]]:
    return tables.read_table(root / "data" / stage / "people.parquet", tables.PEOPLE).to_pylist()


class TestEstimatorBatches:
    SETTINGS = PARAMS.estimator.model_copy(update={"steps": 12, "batch": 3})

    @pytest.fixture(autouse=True)
    def cpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.use_cpus(2, monkeypatch)

    def use_cpus(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("personlab.distributed.cluster.node_cpus", lambda: count)

    def batches(self, root: Path, done: int = 0) -> list[estimator._Batch]:
        return list(estimator._batches(self.SETTINGS, root, done=done))

    def test_an_epoch_has_every_person_once(self, ingested: Path) -> None:
        labelled = [
            p["person_id"]
            for p in people(ingested, "ingest")
            if p["split"] == "train" and any(p["visibility"])
        ]
        used = [person_id for batch in self.batches(ingested) for person_id in batch.person_ids]
        assert len(used) == 36
        epochs = [used[start : start + len(labelled)] for start in range(0, 36, len(labelled))]
        assert len(epochs) > 1
        for epoch in epochs:
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(labelled)
        assert epochs[0] != epochs[1]

    def test_crops_do_not_depend_on_interruptions_or_threads(
        self, ingested: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = self.batches(ingested)
        assert len(expected) == 12
        assert_equal(self.batches(ingested, done=5), expected[5:])
        self.use_cpus(5, monkeypatch)
        assert_equal(self.batches(ingested), expected)

    def test_a_damaged_image_is_named(self, ingested: Path, tmp_path: Path) -> None:
        """The error is raised in a thread that reads ahead."""
        damage(ingested, tmp_path)
        with pytest.raises(UserError, match=r"^train2017/.*: is not an image .* ingest$"):
            self.batches(tmp_path)


def assert_equal(batches: list[estimator._Batch], expected: list[estimator._Batch]) -> None:
    for batch, other in zip(batches, expected, strict=True):
        assert batch.person_ids == other.person_ids
        for name in ("images", "keypoints", "labelled"):
            assert torch.equal(getattr(batch, name), getattr(other, name))


@pytest.mark.slow
class TestImputeStage:
    def test_rows_in_are_rows_out(self, imputed: Path) -> None:
        before, after = people(imputed, "ingest"), people(imputed, "impute")
        assert [p["person_id"] for p in before] == [p["person_id"] for p in after]

    def test_only_train_people_with_a_mask_and_no_keypoints_change(self, imputed: Path) -> None:
        for before, after in zip(people(imputed, "ingest"), people(imputed, "impute"), strict=True):
            candidate = before["split"] == "train" and not before["crowd"] and not any(before["visibility"])
            if not candidate:
                assert after == before
            elif after["imputed"]:
                assert set(after["visibility"]) <= {0, 2}
                assert {k: after[k] for k in ("box", "area", "mask")} == {
                    k: before[k] for k in ("box", "area", "mask")
                }
            else:
                assert after == before

    def test_counts(self, imputed: Path) -> None:
        counts = json.loads((imputed / "data/metrics/impute.json").read_text())
        flagged = sum(bool(p["imputed"]) for p in people(imputed, "impute"))
        assert counts["people"] == len(people(imputed, "impute"))
        assert counts["candidates"] >= counts["imputed"] == flagged > 0

    def test_same_input_same_bytes(self, imputed: Path) -> None:
        def content() -> dict[str, bytes]:
            return {path.name: path.read_bytes() for path in (imputed / "data/impute").iterdir()}

        before = content()
        assert set(before) == {"people.parquet", "imputed.png"}
        impute.run(PARAMS, imputed)
        assert content() == before


class TestCandidates:
    @pytest.fixture(autouse=True)
    def no_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Estimates of every candidate, without an estimator."""

        def estimate(root: Path, people: dict[int, Any], *, gpu: bool) -> dict[int, Any]:
            return {key: {"estimate": [9.0, 9.0, 0.9] * K, "height": 240, "width": 320} for key in people}

        monkeypatch.setattr("personlab.distributed.cluster.connect", lambda _: nullcontext())
        monkeypatch.setattr(impute, "_estimate", estimate)

    def test_max_area_bounds_the_people(self, ingested: Path, tmp_path: Path) -> None:
        shutil.copytree(ingested / "data/ingest", tmp_path / "data/ingest")
        unlabelled = {
            p["person_id"]: p["area"]
            for p in people(ingested, "ingest")
            if p["split"] == "train" and not p["crowd"] and not any(p["visibility"])
        }
        median = sorted(unlabelled.values())[len(unlabelled) // 2]
        for max_area in (median, None):
            impute.run(PARAMS.model_copy(update={"impute": Impute(max_area=max_area)}), tmp_path)
            imputed = {p["person_id"] for p in people(tmp_path, "impute") if p["imputed"]}
            assert imputed == {i for i, area in unlabelled.items() if max_area is None or area < max_area}
            assert imputed

    def test_no_estimate_is_confident_enough(
        self, ingested: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        shutil.copytree(ingested / "data/ingest", tmp_path / "data/ingest")
        with caplog.at_level(logging.INFO, "personlab"):
            impute.run(PARAMS.model_copy(update={"impute": Impute(min_score=1.0)}), tmp_path)
        assert people(tmp_path, "impute") == people(ingested, "ingest")
        assert ", 0 imputed" in caplog.text


def test_people_of_images_that_are_in_no_shard_are_refused(
    ingested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ingested / "data/ingest", tmp_path / "data/ingest")
    monkeypatch.setattr("personlab.distributed.cluster.connect", lambda _: nullcontext())
    monkeypatch.setattr("personlab.distributed.cluster.require", lambda *_, **__: None)
    path = tmp_path / "data/ingest/people.parquet"
    *others, last = tables.read_table(path, tables.PEOPLE).filter(pc.field("split") == "train").to_pylist()
    unlabelled = {"image_id": 10**9, "area": 9.0, "visibility": [0] * K, "crowd": False}
    table = pa.Table.from_pylist([*others, last | unlabelled], schema=tables.PEOPLE)
    tables.write_table(table, path, params_hash="")
    with pytest.raises(UserError, match=r"lacks 1 images of .*people\.parquet, first image 1000000000"):
        impute.run(PARAMS, tmp_path)


class TestActor:
    """A UserError is returned as a value: the user sees a line, not Ray's traceback."""

    @pytest.fixture(autouse=True)
    def keep_malloc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Actors configure the memory of their process, which is the tests' here."""
        monkeypatch.setattr("personlab.utils.malloc.disable_trim", lambda: None)

    def failure(self, weights: Path, ingested: Path, folder: Path) -> str:
        damage(ingested, folder)
        [group] = row_groups(folder / "data/ingest/train")
        unit = {"part": str(group.part), "group": group.index, "rows": group.rows}
        boxes = {i: [{"index": 7, "box": [0.0, 0.0, 9.0, 9.0]}] for i in group.read()["image_id"].to_pylist()}
        [row] = impute._Actor(weights, COCO_PERSON, boxes, gpu=False)(unit)
        return str(row["failure"])

    def test_a_damaged_image(self, ingested: Path, tmp_path: Path) -> None:
        path = save_estimator(tmp_path / "estimator.safetensors")
        assert "is not an image" in self.failure(path, ingested, tmp_path)

    def test_an_estimator_that_cannot_be_read(self, ingested: Path, tmp_path: Path) -> None:
        path = tmp_path / "estimator.safetensors"
        assert "estimator.safetensors" in self.failure(path, ingested, tmp_path)


@pytest.mark.parametrize(
    ("changes", "max_area", "expected"),
    [
        ({}, 1024.0, True),
        ({"area": 1024.0}, 1024.0, False),
        ({"area": 99999.0}, None, True),
        ({"split": "val"}, None, False),
        ({"crowd": True}, None, False),
        ({"mask": b""}, None, False),
        ({"visibility": [0] * 16 + [1]}, None, False),
    ],
)
def test_candidates_are_small_training_people_with_only_a_mask(
    changes: dict[str, object], max_area: float | None, expected: bool
) -> None:
    row = {"split": "train", "crowd": False, "mask": b"T3", "visibility": [0] * K, "area": 1023.0}
    assert impute._is_candidate(row | changes, max_area) == expected


class TestWithKeypoints:
    person = Annotation(
        id=1,
        keypoints=np.zeros((K, 2), np.float32),
        visibility=np.zeros(K, np.int8),
        imputed=False,
        box=(10, 10, 20, 40),
        area=500.0,
        crowd=False,
        rle=b"mask",
    )

    def estimate(self) -> np.ndarray:
        return np.column_stack([np.full((K, 2), 20.0), np.full(K, 0.9)]).astype(np.float32)

    def test_confident_keypoints_inside_the_image_are_kept(self) -> None:
        estimate = self.estimate()
        estimate[3, 2] = 0.1
        estimate[4, 0] = 100.0  # just outside
        estimate[5, 0] = 99.0  # just inside
        person = impute.with_keypoints(self.person, estimate, height=80, width=100, min_score=0.3)
        assert person.imputed
        assert person.visibility.tolist() == [2, 2, 2, 0, 0] + [2] * (K - 5)
        assert person.keypoints[3].tolist() == [0, 0]
        assert person.keypoints[5].tolist() == [99, 20]

    def test_without_confident_keypoints_the_person_is_unchanged(self) -> None:
        estimate = self.estimate() * (1, 1, 0.1)
        person = impute.with_keypoints(self.person, estimate, height=80, width=100, min_score=0.3)
        assert person is self.person
