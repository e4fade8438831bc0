"""The estimator and impute stages, end to end on a few rendered images; what imputing does to a person."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from personlab import params, tables
from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.model.estimator import Estimator
from personlab.params import Acquire, Impute, Params, Sample
from personlab.people import Annotation
from personlab.skeleton import KEYPOINTS, K
from personlab.stages import acquire, estimator, impute, ingest
from personlab.tables.shards import row_groups

PARAMS = Params(
    acquire=Acquire(sample=Sample(train_images=16, val_images=6, width=320, height=240, seed=5)),
    estimator=params.Estimator(width=4, steps=10, batch=4),
    impute=Impute(min_score=0.0),
    compute=params.Compute(checkpoint_every=4),
)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    acquire.run(PARAMS, root)
    ingest.run(PARAMS, root)
    return root


@pytest.fixture(scope="module")
def trained(ingested: Path, ray_local: None) -> Path:
    estimator.run(PARAMS, ingested)
    return ingested


@pytest.fixture(scope="module")
def imputed(trained: Path) -> Path:
    impute.run(PARAMS, trained)
    return trained


def damage(project: Path, copy: Path) -> None:
    """A copy of a project whose training images are no images."""
    shutil.copytree(project / "data/ingest", copy / "data/ingest")
    for part in (copy / "data/ingest/train").iterdir():
        rows = [row | {"image": b"no image"} for row in tables.read_table(part, tables.IMAGES).to_pylist()]
        tables.write_table(pa.Table.from_pylist(rows, schema=tables.IMAGES), part, params_hash="")


def people(root: Path, stage: str) -> list[dict[str, object]]:
    return tables.read_table(root / "data" / stage / "people.parquet", tables.PEOPLE).to_pylist()


@pytest.mark.slow
class TestEstimatorStage:
    def test_metrics_are_of_the_val_people_with_keypoints(self, trained: Path) -> None:
        metrics = json.loads((trained / "data/metrics/estimator.json").read_text())
        expected = [p for p in people(trained, "ingest") if p["split"] == "val" and any(p["visibility"])]
        assert metrics["people"] == len(expected) > 0
        for size in ("full", "small"):
            assert 0 <= metrics[size]["oks"] <= 1
            assert 0 <= metrics[size]["pck"] <= 1

    def test_loss_curve_covers_every_step(self, trained: Path) -> None:
        curve = json.loads((trained / "data/plots/estimator/loss.json").read_text())
        assert [point["step"] for point in curve] == list(range(1, 11))
        assert all(np.isfinite(point["loss"]) for point in curve)

    def test_pck_of_every_keypoint_and_size(self, trained: Path) -> None:
        points = json.loads((trained / "data/plots/estimator/pck.json").read_text())
        bars = [p["keypoint"] for p in points]
        assert len(set(bars)) == len(bars)
        assert {bar.split(", ")[1] for bar in bars} == {"full", "small"}
        assert {bar.split(", ")[0] for bar in bars} <= set(KEYPOINTS)
        assert all(0 <= p["pck"] <= 1 for p in points)

    def test_every_person_is_shown_once_an_epoch_and_a_resumed_run_goes_on_there(
        self, ingested: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("personlab.distributed.cluster.node_cpus", lambda: 2)
        settings = PARAMS.estimator.model_copy(update={"steps": 12, "batch": 3})
        batches = list(estimator._batches(settings, ingested, done=0))
        shown = [person_id for batch in batches for person_id in batch.person_ids]
        labelled = [
            p["person_id"]
            for p in people(ingested, "ingest")
            if p["split"] == "train" and any(p["visibility"])
        ]
        assert len(labelled) < len(shown)
        assert sorted(shown[: len(labelled)]) == sorted(labelled)
        for batch, again in zip(batches[5:], estimator._batches(settings, ingested, done=5), strict=True):
            assert batch.person_ids == again.person_ids
            assert all(torch.equal(a, b) for a, b in zip(batch.tensors, again.tensors, strict=True))

    def test_a_damaged_image_is_named(
        self, ingested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error comes from a thread that reads ahead: its message must get through, and alone."""
        monkeypatch.setattr("personlab.distributed.cluster.node_cpus", lambda: 2)
        damage(ingested, tmp_path)
        with pytest.raises(UserError, match=r"^train2017/.*: is not an image .* ingest$"):
            next(estimator._batches(PARAMS.estimator, tmp_path, done=0))

    def test_a_finished_run_leaves_no_checkpoints(self, trained: Path) -> None:
        assert list((trained / "runs").iterdir()) == []


@pytest.mark.slow
class TestImputeStage:
    def test_rows_in_are_rows_out(self, imputed: Path) -> None:
        before, after = people(imputed, "ingest"), people(imputed, "impute")
        assert [p["person_id"] for p in before] == [p["person_id"] for p in after]

    def test_only_train_people_with_a_mask_and_no_keypoints_change(self, imputed: Path) -> None:
        for before, after in zip(people(imputed, "ingest"), people(imputed, "impute"), strict=True):
            wanted = before["split"] == "train" and not before["crowd"] and not any(before["visibility"])
            if not wanted:
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
        assert counts["imputed"] == flagged > 0
        assert counts["considered"] == counts["imputed"] + counts["left_without"]

    def test_twice_is_the_same_bytes(self, imputed: Path) -> None:
        def content() -> dict[str, bytes]:
            return {path.name: path.read_bytes() for path in (imputed / "data/impute").iterdir()}

        before = content()
        assert set(before) == {"people.parquet", "imputed.png"}
        impute.run(PARAMS, imputed)
        assert content() == before

    def test_nobody_is_sure_enough(
        self, imputed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "data").mkdir()
        for stage in ("acquire", "ingest", "estimator"):
            (tmp_path / "data" / stage).symlink_to(imputed / "data" / stage)
        with caplog.at_level(logging.INFO, "personlab"):
            impute.run(PARAMS.model_copy(update={"impute": Impute(min_score=1.0)}), tmp_path)
        assert people(tmp_path, "impute") == people(imputed, "ingest")
        assert ": 0 imputed" in caplog.text


class TestActor:
    """A UserError is returned as a value: the user sees a line, not Ray's traceback."""

    @pytest.fixture(autouse=True)
    def in_this_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Which is not an actor's, so that its memory is left alone."""
        monkeypatch.setattr("personlab.utils.malloc.disable_trim", lambda: None)

    def failure(self, weights: Path, ingested: Path, folder: Path) -> str:
        damage(ingested, folder)
        [group] = row_groups(folder / "data/ingest/train")
        unit = {"part": str(group.part), "group": group.index, "rows": group.rows}
        boxes = {i: [{"index": 7, "box": [0.0, 0.0, 9.0, 9.0]}] for i in group.read()["image_id"].to_pylist()}
        [row] = impute._Actor(weights, boxes, gpu=False)(unit)
        return str(row["failure"])

    def test_a_damaged_image(self, ingested: Path, tmp_path: Path) -> None:
        path, network = tmp_path / "estimator.safetensors", Estimator(PARAMS.estimator)
        checkpoint.save(path, network.state_dict(), network.card({}))
        assert "is not an image" in self.failure(path, ingested, tmp_path)

    def test_an_estimator_that_cannot_be_read(self, ingested: Path, tmp_path: Path) -> None:
        path = tmp_path / "estimator.safetensors"
        assert "estimator.safetensors" in self.failure(path, ingested, tmp_path)


@pytest.mark.parametrize(
    ("changes", "max_area", "wanted"),
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
def test_who_is_imputed(changes: dict[str, object], max_area: float | None, wanted: bool) -> None:
    """People of the train split below an area, with a mask and without keypoints; no crowds."""
    row = {"split": "train", "crowd": False, "mask": b"T3", "visibility": [0] * K, "area": 1023.0}
    assert impute._is_wanted(row | changes, max_area) == wanted


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

    def test_sure_keypoints_inside_the_image_are_kept(self) -> None:
        estimate = self.estimate()
        estimate[3, 2] = 0.1  # unsure
        estimate[4, 0] = 100.0  # just outside
        estimate[5, 0] = 99.0  # just inside
        person = impute.with_keypoints(self.person, estimate, height=80, width=100, min_score=0.3)
        assert person.imputed
        assert person.visibility.tolist() == [2, 2, 2, 0, 0] + [2] * (K - 5)
        assert person.keypoints[3].tolist() == [0, 0]
        assert person.keypoints[5].tolist() == [99, 20]

    def test_nothing_sure_changes_nothing(self) -> None:
        estimate = self.estimate() * (1, 1, 0.1)
        person = impute.with_keypoints(self.person, estimate, height=80, width=100, min_score=0.3)
        assert person is self.person
