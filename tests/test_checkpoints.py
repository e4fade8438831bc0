"""Runs and their checkpoints, without Ray: what names a run, and the newest checkpoint that is whole."""

import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from personlab.distributed import checkpoints
from personlab.distributed.checkpoints import Run, run_of
from personlab.errors import UserError
from personlab.params import Compute, Decode, Estimator, Model, Params, Train
from personlab.skeleton import COCO_PERSON
from personlab.stages import estimator, train
from personlab.tables import Dataset
from personlab.utils.storage import Folder
from tests.conftest import ROOT

LIST = "checkpoint_manager_snapshot.json"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """With checkpoints after steps 5, 10 and 15."""
    made = run_of(tmp_path, "train", [Train()], [])
    for step in (5, 10, 15):
        save(made, step)
    (folder(made) / LIST).write_text('{"torn')
    return made


def folder(run: Run) -> Path:
    return Path(run.folder.place)


def save(run: Run, step: int) -> Path:
    place = folder(run) / f"step-{step:09}-0123abcd"
    place.mkdir(parents=True)
    checkpoints._write({"step": step, "weights": torch.arange(100.0) + step}, Folder(str(place)))
    return place


def newest(run: Run) -> tuple[int, list[str]]:
    """Its step (0 if there is none), and what was said."""
    said = list[str]()
    found = run.newest(said.append)
    return (run.load(found)["step"] if found else 0), said


def damage(run: Run, step: int, how: str) -> None:
    state = folder(run) / f"step-{step:09}-0123abcd" / "state.pt"
    if how == "broken off":
        state.write_bytes(state.read_bytes()[:-100])
    elif how == "another bit":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif how == "empty":
        state.write_bytes(b"")
    elif how == "missing":
        state.unlink()
    else:
        state.with_name("state.sha256").unlink()


def test_the_newest_comes_first(run: Run) -> None:
    assert newest(run) == (15, [])


@pytest.mark.parametrize("how", ["broken off", "another bit", "empty", "missing", "no digest"])
def test_a_damaged_one_is_passed_over_and_reported(run: Run, how: str) -> None:
    damage(run, 15, how)
    step, said = newest(run)
    assert step == 10
    assert len(said) == 1
    assert "step-000000015-0123abcd is damaged" in said[0]
    damage(run, 10, how)
    damage(run, 5, how)
    assert newest(run)[0] == 0


def test_opening_keeps_two_whole_ones_and_nothing_else(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    save(run, 20)
    damage(run, 20, "broken off")
    with suppress(KeyError), caplog.at_level(logging.WARNING), run.lock():
        assert sorted(p.name[:14] for p in folder(run).glob("step-*")) == ["step-000000010", "step-000000015"]
        assert not (folder(run) / LIST).exists()
        raise KeyError  # killed, or failed
    assert "step-000000020-0123abcd is damaged" in caplog.text
    assert newest(run) == (15, [])


def test_a_run_that_is_done_is_forgotten(run: Run) -> None:
    with run.lock():
        pass
    assert not folder(run).exists()
    assert not run.scratch.exists()


def test_two_at_once(run: Run) -> None:
    with run.lock(), pytest.raises(UserError, match="another run is writing here"), run.lock():
        pass


def test_the_end_has_to_be_there(run: Run) -> None:
    assert run.finished(15)["step"] == 15
    damage(run, 15, "another bit")
    with pytest.raises(UserError, match="the last checkpoint is damaged"):
        run.finished(15)


def test_a_run_is_named_by_its_parameters_and_inputs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_text("one")
    one = run_of(tmp_path, "train", [Train()], [tmp_path / "in"])
    assert run_of(tmp_path, "train", [Train()], [tmp_path / "in"]) == one
    assert run_of(tmp_path, "train", [Train(seed=1)], [tmp_path / "in"]).name != one.name
    (tmp_path / "in/a").write_text("two")
    assert run_of(tmp_path, "train", [Train()], [tmp_path / "in"]).name != one.name


def training_name(
    root: Path, *, init: str | None = None, compute: Compute | None = None, **changes: Any
) -> str:
    recipe = train.Recipe(model=Model(init=init), train=Train(**changes))
    return train.training_run(recipe, compute or Compute(), root).name


@pytest.mark.parametrize("init", [None, "init.safetensors"])
def test_a_training_resumes_whatever_compute_says(tmp_path: Path, init: str | None) -> None:
    """With frozen statistics also with other workers: the steps are the same."""
    before = training_name(tmp_path, init=init)
    elsewhere = Compute(
        gpu=True, max_failures=9, checkpoint_every=7, ray_address="auto", storage_path="/mnt/shared"
    )
    assert training_name(tmp_path, init=init, compute=elsewhere) == before
    four = training_name(tmp_path, init=init, compute=Compute(workers=4))
    assert (four == before) == (init is not None)
    for change in ({"seed": 1}, {"precision": "bfloat16"}, {"validate_every": 5}):
        assert training_name(tmp_path, init=init, **change) != before


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code that the stages take for their own."""
    copy = tmp_path / "personlab"
    shutil.copytree(ROOT / "personlab", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for stage in (train, estimator):
        monkeypatch.setattr(stage, "__file__", str(copy / "stages" / Path(stage.__file__).name))
    return copy


@pytest.mark.parametrize(
    ("edited", "same"),
    [
        *[
            ("codec/score.py", True),
            ("codec/masks.py", True),
            ("predictor.py", True),
            ("metrics/oks.py", True),
        ],
        *[("codec/encode.py", False), ("model/losses.py", False), ("data/augment.py", False)],
        *[("training/engine.py", False), ("stages/train.py", False)],
    ],
)
def test_a_training_resumes_with_another_decoder_and_not_with_another_encoder(
    package: Path, edited: str, same: bool
) -> None:
    before = training_name(package.parent)
    with (package / edited).open("a") as file:
        file.write("# edited\n")
    assert (training_name(package.parent) == before) is same


def test_no_parameter_of_decoding_or_prediction_is_one_of_training() -> None:
    assert {*train.Recipe.model_fields} & {"decode", "infer", "evaluate", "compute"} == set()
    assert {*Decode.model_fields} & {*Model.model_fields, *Train.model_fields} == set()


def test_an_estimator_resumes_whatever_compute_says(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    def stop(run: Run) -> None:
        names.append(run.name)
        raise KeyboardInterrupt

    Dataset(COCO_PERSON, masks=True).write(package.parent / "data/ingest")
    monkeypatch.setattr(Run, "lock", stop)
    monkeypatch.setattr(estimator, "people_with_keypoints", lambda *_: {1: [None]})
    for compute in (Compute(), Compute(gpu=True, checkpoint_every=3, max_failures=9, workers=2)):
        with pytest.raises(KeyboardInterrupt):
            estimator.run(Params(compute=compute), package.parent)
    assert names[0] == names[1]


def code_of(stage: str) -> set[Path]:
    """The code that dvc.yaml lists."""
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    return {ROOT / dep for dep in deps if dep.startswith("personlab/")}


def test_an_estimators_run_depends_on_its_initial_weights_and_code(tmp_path: Path) -> None:
    inputs = estimator._inputs(Estimator(init="init.safetensors"), tmp_path)
    assert tmp_path / "init.safetensors" in inputs
    assert code_of("estimator") == {path for path in inputs if path.is_relative_to(ROOT)}


def test_a_training_run_depends_on_its_initial_weights_and_code(tmp_path: Path) -> None:
    recipe = train.Recipe(model=Model(init="init.safetensors"), train=Train())
    inputs = train._inputs(recipe, tmp_path)
    assert {tmp_path / "init.safetensors", tmp_path / "init.json"} <= set(inputs)
    assert code_of("train") == {path for path in inputs if path.is_relative_to(ROOT)}


@pytest.mark.parametrize(
    ("storage_path", "place"),
    [
        (None, "{root}/runs/"),
        ("elsewhere", "{root}/elsewhere/"),
        ("/mnt/shared/", "/mnt/shared/"),
        ("s3://bucket/folder", "s3://bucket/folder/"),
    ],
)
def test_where_checkpoints_are(tmp_path: Path, storage_path: str | None, place: str) -> None:
    run = run_of(tmp_path, "train", [Train()], [], storage_path)
    assert run.folder.place == place.format(root=tmp_path) + run.name
    assert run.scratch == tmp_path / "runs" / run.name


@pytest.mark.parametrize("scheme", ["file://", "fsspec+file://"])
def test_checkpoints_elsewhere(tmp_path: Path, scheme: str) -> None:
    run = run_of(tmp_path / "project", "train", [Train()], [], f"{scheme}{tmp_path}/store")
    assert run.config(max_failures=1).storage_path == str(tmp_path / "project/runs")  # Ray's own files
    with run.lock():
        place = tmp_path / "store" / run.name / "step-000000003-0123abcd"
        place.mkdir(parents=True)
        checkpoints._write({"step": 3}, Folder(str(place)))
        assert newest(run) == (3, [])
    assert not list((tmp_path / "store").iterdir())
