"""infer: a part per shard, every image under its own id, the same bytes on any cluster; the served model."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from personlab import tables
from personlab.cli import app
from personlab.data.images import pixels
from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.params import Acquire, Compute, Decode, Export, Infer, Ingest, Model, Params, Sample
from personlab.people import SHOWN
from personlab.predictor import Predictor
from personlab.stages import acquire, evaluate, infer, ingest, targets
from tests.batches import save_weights
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]

PARAMS = Params(
    acquire=Acquire(sample=Sample(train_images=4, val_images=40, width=96, height=72)),
    ingest=Ingest(max_reject_fraction=1, train_images_with_people_only=False),
    infer=Infer(sides=(65,), stride=16),
    decode=Decode(nms_radius=5, bin=1, max_people=2),
)
MODEL = "data/infer/model.safetensors"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project up to `train`, its 40 validation images in shards of 7, without the image files."""
    root = tmp_path_factory.mktemp("project")
    acquire.run(PARAMS, root)
    ingest.run(PARAMS, root)
    shutil.rmtree(root / "data/acquire")
    val = root / "data/ingest/val"
    rows = [row for part in sorted(val.iterdir()) for row in rows_of(part)]
    for number in range(0, len(rows), 7):
        write_rows(val / f"part-{number // 7:05}.parquet", rows[number : number + 7])
    save_weights(root / "data/train/model.safetensors")
    return root


def rows_of(part: Path) -> list[dict]:
    rows: list[dict] = tables.read_table(part, tables.IMAGES).to_pylist()
    return rows


def write_rows(part: Path, rows: list[dict]) -> None:
    tables.write_table(pa.Table.from_pylist(rows, schema=tables.IMAGES), part, params_hash="")


@pytest.fixture
def project(shards: Path, tmp_path: Path) -> Path:
    shutil.copytree(shards / "data", tmp_path / "data")
    return tmp_path


@dataclass(frozen=True)
class Inferred:
    """A project after an undisturbed `infer`, and the work of the run as it was before its last step."""

    root: Path
    work: Path


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Inferred:
    root, work = tmp_path_factory.mktemp("inferred"), tmp_path_factory.mktemp("work") / "runs"
    shutil.copytree(shards / "data", root / "data")
    regroup = infer._by_shard

    def keep(*arguments: Any) -> Iterator[pa.Table]:
        shutil.copytree(root / "runs", work)
        return regroup(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer, "_by_shard", keep)
        infer.run(PARAMS, root)
    return Inferred(root, work)


@pytest.fixture(scope="module")
def inferred(run: Inferred) -> Path:
    return run.root


DECODE = Decode(nms_radius=9, bin=2, nms="hard", scoring="hough", trace_refinements=0, max_people=3)


@pytest.fixture(scope="module")
def blended(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same project after an `infer` with a share of initial weights and another decoding."""
    root = tmp_path_factory.mktemp("blended")
    shutil.copytree(shards / "data", root / "data")
    save_weights(root / "initial.safetensors", seed=1)
    changes = {
        "model": Model(init="initial.safetensors"),
        "export": Export(initial_share=0.25),
        "decode": DECODE,
        "compute": Compute(max_failures=7),
    }
    infer.run(PARAMS.model_copy(update=changes), root)
    return root


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def predictions(root: Path) -> list[dict]:
    parts = sorted((root / "data/infer").glob("part-*.parquet"))
    return [row for part in parts for row in tables.read_table(part, tables.PREDICTIONS).to_pylist()]


def test_every_image_is_predicted_in_the_part_of_its_shard(inferred: Path) -> None:
    predictor = Predictor.from_checkpoint(
        inferred / "data/train/model.safetensors", PARAMS.infer, PARAMS.decode
    )
    people = list[float]()
    vals = sorted((inferred / "data/ingest/val").glob("part-*.parquet"))
    assert len(vals) == 6
    for shard in vals:
        images = rows_of(shard)
        found = tables.read_table(inferred / "data/infer" / shard.name, tables.PREDICTIONS).to_pylist()
        assert [row["image_id"] for row in found] == [row["image_id"] for row in images]
        written = (inferred / "data/infer" / shard.name).read_bytes()
        digest = tables.params_hash(PARAMS.infer, PARAMS.decode)
        plain = pa.Table.from_pylist(found, schema=tables.PREDICTIONS)
        assert written == tables.table_bytes(plain, params_hash=digest)
        for person, expected in zip(found[0]["people"], predictor(pixels(images[0])), strict=True):
            np.testing.assert_array_equal(person["keypoints"], expected.keypoints.ravel())
            assert person["mask"] == expected.rle
        people += [person["score"] for row in found for person in row["people"]]
    counts = json.loads((inferred / "data/metrics/infer.json").read_text())
    shown = sum(score >= SHOWN for score in people)
    assert counts == {"images": 40, "proposals": len(people), "people": shown}
    assert people
    assert not list((inferred / "runs").iterdir())


def test_the_served_model_is_the_trained_one_and_its_decoding(inferred: Path) -> None:
    trained = inferred / "data/train/model.safetensors"
    assert (inferred / MODEL).read_bytes() == trained.read_bytes()
    card, before = (json.loads(path.with_suffix(".json").read_text()) for path in (inferred / MODEL, trained))
    assert card == before | {"decode": PARAMS.decode.model_dump(mode="json")}


def test_the_served_model_is_a_mean_with_the_initial_weights(blended: Path) -> None:
    """And it is the one that predicts."""
    initial, trained, served = (
        checkpoint.load_weights(blended / name)
        for name in ("initial.safetensors", "data/train/model.safetensors", MODEL)
    )
    name = "heads.short.weight"
    torch.testing.assert_close(served[name], 0.25 * initial[name] + 0.75 * trained[name])
    assert json.loads((blended / MODEL).with_suffix(".json").read_text())["initial_share"] == 0.25
    predictor = Predictor.from_checkpoint(blended / MODEL, PARAMS.infer)
    row = predictions(blended)[0]
    image = rows_of(blended / "data/ingest/val/part-00000.parquet")[0]
    expected = [person.score for person in predictor(pixels(image))]
    assert [person["score"] for person in row["people"]] == pytest.approx(expected)
    assert not list((blended / "runs").iterdir())


def test_predict_decodes_as_infer_did(
    inferred: Path, blended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoding parameter changed after training: infer, its model and predict use the new value."""
    assert Predictor.from_checkpoint(inferred / MODEL).decoder.nms_radius == 5
    served = Predictor.from_checkpoint(blended / MODEL).decoder
    assert {name: getattr(served, name) for name in Decode.model_fields} == DECODE.model_dump()

    (tmp_path / "in").mkdir()
    for row in rows_of(blended / "data/ingest/val/part-00000.parquet"):
        (tmp_path / "in" / f"{row['image_id']:012}.jpg").write_bytes(row["image"])
    monkeypatch.chdir(tmp_path)
    options = ["--out", "out", "--format", "parquet", "--side", "65", "--stride", "16"]
    app(["predict", "in", "--weights", str(blended / MODEL), *options], result_action="return_value")
    expected = {row["image_id"]: row["people"] for row in predictions(blended)}
    found = tables.read_table(tmp_path / "out/predictions.parquet", tables.PREDICTIONS).to_pylist()
    assert len(found) == 7
    for row in found:
        assert row["people"] == expected[row["image_id"]]
    before = Predictor.from_checkpoint(blended / MODEL, PARAMS.infer, PARAMS.decode)
    images = rows_of(blended / "data/ingest/val/part-00000.parquet")
    assert any(
        [person.score for person in before(pixels(image))]
        != [p["score"] for p in expected[image["image_id"]]]
        for image in images
    )


def test_no_later_stage_reads_an_image_file(inferred: Path) -> None:
    assert not (inferred / "data/acquire").exists()
    (inferred / "data/impute").mkdir()
    shutil.copy(inferred / "data/ingest/people.parquet", inferred / "data/impute")
    targets.run(PARAMS, inferred)
    evaluate.run(PARAMS, inferred)
    assert (inferred / "data/evaluate/gallery.jpg").is_file()


def test_a_model_of_version_01_keeps_its_radius(project: Path) -> None:
    """Its radius is in the card's section `codec`, beside a decoding that the new one replaces."""
    for suffix in (".safetensors", ".json"):
        shutil.copyfile(ROOT / f"tests/fixtures/v0.1/model{suffix}", project / f"data/train/model{suffix}")
    infer.run(PARAMS.model_copy(update={"decode": Decode(nms_radius=7, bin=1)}), project)
    served = Predictor.from_checkpoint(project / MODEL).decoder
    assert (served.radius, served.nms_radius, served.bin) == (12, 7, 1)


def test_a_stage_killed_half_way_resumes_to_the_same_bytes(
    project: Path, run: Inferred, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run.work, project / "runs")  # as if it had been killed before the last step
    [work] = (project / "runs").iterdir()
    (work / "part-00001.parquet").unlink()
    kept = (work / "part-00000.parquet").stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(infer.shutil, "rmtree", lambda _: None)
        infer.run(PARAMS.model_copy(update={"compute": Compute(checkpoint_every=9)}), project)
    assert (work / "part-00000.parquet").stat().st_mtime_ns == kept
    assert digests(project / "data/infer") == digests(run.root / "data/infer")


def test_an_image_that_cannot_be_read_stops_the_stage(project: Path) -> None:
    path = project / "data/ingest/val/part-00002.parquet"
    rows = rows_of(path)
    rows[3]["image"] = rows[3]["image"][:2]
    write_rows(path, rows)
    with pytest.raises(UserError, match=r"part-00002\.parquet#3: .*not an image"):
        infer.run(PARAMS, project)
    assert not (project / "data/infer").exists()
    assert not list((project / "runs").iterdir())
