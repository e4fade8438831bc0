"""Retraining, from the form to the verdict, on the rehearsal pipeline and a real Prefect server."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dvc.repo.artifacts import Artifacts
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events.filters import EventFilter
from pydantic import ValidationError

import personlab
from flows.retrain import Retraining, retrain
from personlab.distributed.checkpoints import Run
from personlab.errors import UserError
from personlab.params import load
from personlab.registry.models import Registry
from personlab.registry.provenance import ARTIFACT
from personlab.utils.checkout import checkout
from personlab.utils.storage import Folder
from tests import rehearsal
from tests.batches import save_weights
from tests.conftest import ROOT
from tests.rehearsal import BAD, BEST, STAGES, USUAL
from tests.served import artifacts_of, is_alive, log_of, run_of, sub_runs, table_of

pytestmark = pytest.mark.slow

PATIENCE = 600  # seconds until a test fails
GALLERY = "evaluate.gallery=3"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an uncommitted change, in a folder whose name is not ASCII."""
    place = tmp_path_factory.mktemp("rehearsal")
    folder = place / "Läufe 2"
    rehearsal.project(folder, weights=save_weights(place / "model.safetensors"))
    with rehearsal.dvc(folder) as repo, repo.config.edit() as settings:
        settings["remote"] = {"storage": {"url": str(place / "storage")}}
        settings["core"]["remote"] = "storage"
    rehearsal.commit(folder)
    (folder / "input/ingest.txt").write_text("uncommitted\n")
    return folder


@pytest.fixture(scope="module")
def first(prefect_server: None, project: Path) -> State[Any]:
    """The state of the first retraining."""
    return retrain(Retraining(overrides=[GALLERY]), project, return_state=True)


def outcomes(state: State[Any]) -> dict[str, str]:
    return {row["stage"]: row["outcome"] for row in table_of(run_of(state), "retrain-stages")}


def of_champion(project: Path) -> dict[str, bytes]:
    folder = project / "models/champion"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def branch(project: Path, name: str) -> Iterator[Path]:
    """A worktree of a new branch, committed at the end of the block."""
    aside = project.with_name(name)
    rehearsal.run(project, "git", "worktree", "add", "-q", "-b", name, str(aside), "main")
    yield aside
    rehearsal.commit(aside)


def has_event(event: str, run: FlowRun) -> bool:
    """Whether the server has an event of a run for its automations; it stores them with a delay."""
    of_run = EventFilter.model_validate(
        {"event": {"name": [event]}, "resource": {"id": [f"prefect.flow-run.{run.id}"]}}
    )
    end = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while time.monotonic() < end:
            if client.read_events(of_run, limit=1).events:
                return True
            time.sleep(0.5)
    return False


def learning_rate(value: float) -> list[str]:
    return [GALLERY, f"train.learning_rate={value}"]


def test_the_first_model_becomes_champion_and_the_working_tree_stays_as_it_is(
    project: Path, first: State[Any]
) -> None:
    assert (first.name, first.message) == ("Promoted", "promoted to version 1: there is no champion yet")
    runs = sub_runs(first)
    assert [run.name for run in runs] == list(STAGES)
    assert outcomes(first) == dict.fromkeys(STAGES, "Completed")
    for run in runs:
        assert f"{run.name}: hello from the stage" in [message for _, message in log_of(run)]
    assert not artifacts_of(runs[0])
    assert artifacts_of(runs[3]).keys() == {"impute-metrics", "impute-imputed"}
    assert rehearsal.run(project, "git", "status", "--porcelain") == "M input/ingest.txt"
    assert rehearsal.run(project, "git", "branch", "--show-current") == "main"
    assert not (project / "data/train").exists()
    champion = Registry(project).champion()
    assert champion
    assert champion.settings.train.learning_rate == USUAL
    assert str(champion.lineage.experiment).startswith("retrain-")
    saved = f"{champion.lineage.commit}:dvc.lock"
    assert rehearsal.run(project, "git", "cat-file", "-t", saved) == "blob"


def test_the_project_and_its_checkout_share_results_and_the_champion_can_be_pulled(
    project: Path, first: State[Any], tmp_path: Path
) -> None:
    clone, pulled = tmp_path / "clone", tmp_path / "pulled"
    rehearsal.run(project, "git", "reset", "-q", "--hard")
    with rehearsal.dvc(project) as repo:
        (experiment,) = rehearsal.experiments(project)
        repo.experiments.apply(experiment)
        repo.reproduce()  # restores the metrics, which Git did not know
        repo.push(all_tags=True)
    for name in ("data/infer/part-00000.parquet", "data/metrics/evaluate.json", "data/evaluate/gallery.jpg"):
        assert (project / name).read_bytes() == (project / "runs/retrain" / name).read_bytes()
    assert load(project / "params.yaml").evaluate.gallery == 3

    rehearsal.run(project, "git", "switch", "-q", "-c", "results")
    rehearsal.commit(project)
    with checkout(project, "results", ["evaluate.gallery=2"]) as folder, rehearsal.dvc(folder) as repo:
        assert repo.status().keys() == {"evaluate"}
    rehearsal.run(project, "git", "switch", "-q", "main")
    (project / "input/ingest.txt").write_text("uncommitted\n")

    rehearsal.run(tmp_path, "git", "clone", "-q", str(project), str(clone))
    rehearsal.run(clone, "git", "checkout", "-q", "champion/1")
    with rehearsal.dvc(clone) as repo:
        repo.pull()
    Artifacts.get(str(clone), ARTIFACT, stage="champion", out=str(pulled))
    champion = (project / "models/champion/model.safetensors").read_bytes()
    for folder in (clone / "data/infer", pulled):
        assert (folder / "model.safetensors").read_bytes() == champion
    predictor = personlab.Predictor.from_checkpoint(pulled / "model.safetensors")
    assert predictor.level(np.zeros((36, 48, 3), np.uint8), 65).scale > 1


def test_a_sabotaged_model_is_not_promoted_a_better_one_is_and_rollback_brings_the_bytes_back(
    project: Path, first: State[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = of_champion(project)
    sabotage = Retraining(overrides=learning_rate(BAD), refresh_data=True)
    sabotaged = retrain(sabotage, project, return_state=True)
    assert sabotaged.is_completed()
    assert sabotaged.name == "Not promoted"
    assert "keypoints and segmentation got worse" in str(sabotaged.message)
    ran = {"acquire", "train", "infer", "evaluate"}
    assert outcomes(sabotaged) == {stage: "Completed" if stage in ran else "Cached" for stage in STAGES}
    reasons = {row["stage"]: row["reason"] for row in table_of(run_of(sabotaged), "retrain-stages")}
    assert "'targets'" in reasons["targets"]
    assert of_champion(project) == before

    shown = artifacts_of(run_of(sabotaged))
    assert shown.keys() == {
        "retrain-stages", "retrain-scores", "retrain-parameters", "retrain-curves", "retrain-gallery",
        "retrain-summary",
    }  # fmt: skip
    assert all(artifact.description for artifact in shown.values())
    summary = str(shown["retrain-summary"].data)
    assert summary.startswith("# Not promoted: ")
    assert "| Keypoints | 0." in summary
    assert "- data set: sample, 24 images to train on, 24 images to validate on" in summary
    assert f"- unlike the champion: train.learning_rate: {USUAL} → {BAD}" in summary
    (name,) = {run_of(sabotaged).name} & set(rehearsal.experiments(project))
    assert f"`dvc exp apply {name}`" in summary
    assert (project / f"runs/reports/{name}.html").as_uri() in summary
    (parameter,) = table_of(run_of(sabotaged), "retrain-parameters")
    assert parameter == {"parameter": "train.learning_rate", "champion": USUAL, "now": BAD}
    scores = {row["metric"]: row for row in table_of(run_of(sabotaged), "retrain-scores")}
    assert scores["keypoints.AP"]["change"].startswith("-")
    assert len(list((project / "runs/reports").glob("retrain-*.html"))) == 2

    def fail(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr("flows.retrain.page.write", fail)  # a model is promoted even if it cannot be shown
    better = retrain(Retraining(overrides=learning_rate(BEST)), project, return_state=True)
    assert (30, "the report cannot be shown: OSError: no room") in log_of(run_of(better))
    assert better.name == "Promoted"
    assert str(better.message).startswith("promoted to version 2: keypoints")
    assert of_champion(project) != before
    (parameter,) = table_of(run_of(better), "retrain-parameters")  # beside the previous champion
    assert parameter == {"parameter": "train.learning_rate", "champion": USUAL, "now": BEST}
    # the event that the documented automation expects
    assert has_event("prefect.flow-run.Not promoted", run_of(sabotaged))
    assert len(rehearsal.experiments(project)) == 3

    Registry(project).rollback()
    assert of_champion(project) == before


def test_the_message_of_a_failed_run_begins_with_the_error_of_its_stage(
    project: Path, first: State[Any]
) -> None:
    reason = "personlab: input/ingest.txt: row 3 is bad\n  write another row"
    with branch(project, "broken") as aside:
        (aside / "input/ingest.txt").write_text(reason)
    state = retrain(Retraining(revision="broken"), project, return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith(f"ingest: {reason}")
    runs = sub_runs(state)
    assert [run.name for run in runs] == ["acquire", "ingest"]
    failed = runs[-1].state
    assert failed is not None
    assert failed.is_failed()
    assert str(failed.message).startswith("personlab: input/ingest.txt: row 3 is bad")
    assert (40, "personlab: input/ingest.txt: row 3 is bad") in log_of(runs[-1])


def test_bad_revisions_and_overrides_are_errors(project: Path, first: State[Any]) -> None:
    state = retrain(Retraining(revision="nowhere"), project, return_state=True)
    assert state.is_failed()
    assert "nowhere" in str(state.message)
    state = retrain(Retraining(overrides=["train.stepz=3"]), project, return_state=True)
    assert state.is_failed()
    assert "params.yaml cannot be given train.stepz=3" in str(state.message)
    state = retrain(Retraining(overrides=["train.steps=some"]), project, return_state=True)
    assert "train.steps: input should be a valid integer" in str(state.message)


def test_the_form_refuses_bad_values() -> None:
    for bad in ({"rule": "maybe"}, {"overrides": ["; rm"]}, {"branch": "main"}):
        with pytest.raises(ValidationError):
            Retraining.model_validate(bad)


def test_two_retrainings_do_not_share_a_checkout(project: Path, first: State[Any]) -> None:
    with (
        checkout(project, "HEAD", []),
        pytest.raises(UserError, match="another retraining is running"),
        checkout(project, "HEAD", []),
    ):
        pass


def test_a_checkout_has_no_changes_of_earlier_runs(project: Path, first: State[Any]) -> None:
    place = project / "runs/retrain"
    (place / "rehearsal.py").write_text("nonsense")
    (place / "stray.txt").write_text("left behind")
    Path(rehearsal.run(place, "git", "rev-parse", "--git-path", "index.lock")).touch()
    with checkout(project, "HEAD", ["train.steps=7"]) as folder:
        assert (folder / "rehearsal.py").read_bytes() == Path(rehearsal.__file__).read_bytes()
        assert not (folder / "stray.txt").exists()
        assert load(folder / "params.yaml").train.steps == 7
        assert (folder / "data/targets").is_dir()


def test_relative_paths_in_the_parameters_are_of_the_project(project: Path, first: State[Any]) -> None:
    for section in ("model", "estimator"):
        weights = Path("data", section).with_suffix(".bin")
        (project / weights).write_text(section)
        with checkout(project, "HEAD", [f"{section}.init={weights}"]) as folder:
            assert (folder / weights).read_text() == section
        (project / weights).unlink()


# --- cancelled in the middle ------------------------------------------------------------------------------


def marked(mark: str) -> Iterator[int]:
    """The processes with `mark` in their environment, which processes that they start inherit."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes() and is_alive(int(folder.name)):
                yield int(folder.name)
        except (OSError, ProcessLookupError):
            continue


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_cancelled_training_leaves_no_process_and_an_intact_checkpoint(
    project: Path, first: State[Any]
) -> None:
    from prefect.settings import PREFECT_API_URL

    with branch(project, "real") as aside:
        pipeline = (aside / "dvc.yaml").read_text()
        (aside / "dvc.yaml").write_text(pipeline.replace("rehearsal.py train", "-m personlab train"))

    mark = uuid.uuid4().hex
    ours = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(ROOT), "MARK": mark}
    often = "compute.checkpoint_every=5"
    command = (sys.executable, "-m", "flows.retrain", "--revision", "real", "-S", often)
    place = project / "runs/retrain"
    flow = subprocess.Popen(command, cwd=project, env=os.environ | ours, start_new_session=True)
    try:
        wait_until(lambda: has_checkpoint(place), flow)
        assert len(list(marked(mark))) > 5  # the flow, the supervisor, DVC, the stage, and Ray's
        flow.send_signal(signal.SIGTERM)  # as a runner does when a run is cancelled
        assert flow.wait(PATIENCE) != 0
    finally:
        flow.kill()
        flow.wait()
    end = time.monotonic() + PATIENCE
    while list(marked(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    assert list(marked(mark)) == []
    assert rehearsal.run(project, "git", "status", "--porcelain") == "M input/ingest.txt"
    assert not (place / "data/train").exists()
    assert not list(place.glob("data/.*.partial"))

    (folder,) = place.glob("runs/train-*")  # where the next retraining resumes
    assert Run(folder.name, Folder(str(folder)), folder).newest(print)


def wait_until(ready: Any, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def has_checkpoint(place: Path) -> bool:
    return any(place.glob("runs/train-*/step-*/state.sha256"))
