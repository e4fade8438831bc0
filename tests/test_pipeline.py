"""The whole pipeline through DVC: small, but every stage real, and killed in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from personlab.params import Params
from personlab.tables import params_hash
from tests import tiny
from tests.tiny import STAGES, TINY, write_params

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, ray_local: str) -> Iterator[Path]:
    """A Git and DVC repository with this pipeline, tiny parameters, and nothing run; stages share one Ray."""
    folder = tmp_path_factory.mktemp("project")
    tiny.project(folder)
    (folder / "prefect").mkdir()  # before the real one on every stage's path: the pipeline needs none
    (folder / "prefect/__init__.py").write_text('raise ImportError("dvc repro has no use for Prefect")\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray_local)
        yield folder


def start(*arguments: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=os.environ | path | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def dvc(*arguments: str, folder: Path, **environment: str) -> str:
    """What DVC printed; it must have succeeded."""
    process = start(*arguments, folder=folder, **environment)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def kill_when(ready: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """SIGKILL the whole process group as soon as `ready`, as a power cut would."""
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "never came to the point where it was to be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def has_checkpoint(project: Path) -> bool:
    """Whether there is a complete one: its digest is written last."""
    return any(project.glob("runs/train-*/step-*/state.sha256"))


def curves_of(project: Path) -> dict[str, str]:
    plots = project / "data/plots/train"
    return {str(path.relative_to(plots)): path.read_text() for path in plots.rglob("*.tsv")}


def test_every_stage_runs_and_a_second_run_does_nothing(project: Path) -> None:
    output = dvc("repro", folder=project, PERSONLAB_LOG="json", PERSONLAB_RUN="weekly-7")
    logged = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert {line["stage"] for line in logged} == set(STAGES)
    experiment = {name: section for name, section in TINY.items() if name != "compute"}
    digest = params_hash(Params.model_validate(experiment))
    assert {(line["run"], line["params"]) for line in logged} == {("weekly-7", digest)}
    scores = json.loads((project / "data/metrics/evaluate.json").read_text())
    assert list(scores) == ["keypoints", "segm"]
    assert (project / "data/evaluate/gallery.jpg").is_file()
    curves = curves_of(project)
    assert "loss.tsv" in curves
    header, *points = (line.split("\t") for line in curves["ap.tsv"].splitlines())
    assert header == ["step", *scores]
    assert [int(step) for step, *_ in points] == [20, 40]
    assert all(0 <= float(ap) <= 1 for _, *aps in points for ap in aps)
    for stage in STAGES:
        assert (project / "data" / stage).is_dir()
    again = dvc("repro", folder=project)
    assert "Running stage" not in again
    assert "up to date" in again


def test_other_inference_reruns_only_infer_and_evaluate(project: Path) -> None:
    write_params(project, TINY | {"infer": {"sides": [97, 129], "stride": 16}, "decode": {"nms": "hard"}})
    output = dvc("repro", folder=project)
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in output] == ["infer", "evaluate"]
    assert "decode.nms" in dvc("params", "diff", folder=project)
    assert "AP" in dvc("metrics", "show", "data/metrics/evaluate.json", folder=project)
    assert "evaluate" in dvc("dag", folder=project)
    dvc("plots", "show", "--out", str(project / "plots"), folder=project)
    page = (project / "plots/index.html").read_text()
    assert "Precision over recall, masks" in page
    assert "data_plots_" not in page  # no chart but those that dvc.yaml describes
    write_params(project, TINY)
    assert "Running stage" not in dvc("repro", folder=project)  # from the run cache


def test_where_it_is_computed_reruns_nothing(project: Path) -> None:
    compute = {"gpu": True, "workers": 2, "checkpoint_every": 9, "max_failures": 0, "ray_address": "auto"}
    write_params(project, TINY | {"compute": compute | {"storage_path": "elsewhere"}})
    assert "up to date" in dvc("status", folder=project)
    write_params(project, TINY)


def test_other_initial_weights_under_the_same_name_are_noticed(project: Path) -> None:
    (project / "models/init.safetensors").write_bytes(b"first")
    write_params(project, TINY | {"model": TINY["model"] | {"init": "models/init.safetensors"}})
    changed = dvc("status", "train", folder=project)
    assert "models/init.safetensors" in changed
    dvc("commit", "--force", "train", folder=project)  # as if it had been trained on them
    assert "models/init.safetensors" not in dvc("status", "train", folder=project)
    (project / "models/init.safetensors").write_bytes(b"second")
    assert "models/init.safetensors" in dvc("status", "train", folder=project)
    write_params(project, TINY)
    dvc("repro", folder=project)


def test_a_killed_ingest_leaves_nothing_behind_and_is_made_again(project: Path) -> None:
    before = sorted((project / "data/ingest").rglob("*.parquet"))
    first = [path.read_bytes() for path in before]
    running = start("repro", "--force", "--single-item", "ingest", folder=project)
    kill_when((project / "data/.ingest.partial").is_dir, running)
    assert not (project / "data/ingest").exists()  # DVC had cleared it; nothing half-written took its place
    dvc("repro", folder=project)
    assert [path.read_bytes() for path in before] == first


def test_a_killed_training_resumes_from_its_last_checkpoint(project: Path) -> None:
    weights = project / "data/train/model.safetensors"
    uninterrupted, curves = weights.read_bytes(), curves_of(project)
    shutil.rmtree(project / "runs", ignore_errors=True)
    running = start("repro", "--force", "--single-item", "train", folder=project)
    kill_when(lambda: has_checkpoint(project), running)
    assert not weights.exists()
    output = dvc("repro", "--force", "--single-item", "train", folder=project)
    assert "resuming from step" in output
    assert "waiting for data; " in output
    assert "s of validation not included" in output
    assert weights.read_bytes() == uninterrupted
    assert curves_of(project) == curves  # no step is in them twice
    assert not list(project.glob("runs/train-*"))
