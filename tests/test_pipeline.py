"""The whole pipeline through DVC: small, but every stage real, and killed in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from dvc import cli

from personlab.params import Params
from personlab.stages import ingest
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


def dvc_here(*arguments: str, folder: Path) -> str:
    """What DVC printed, in this process: to import it takes longer than most of its commands."""
    output = StringIO()
    with chdir(folder), redirect_stdout(output):
        assert cli.main(list(arguments)) == 0, output.getvalue()
    return output.getvalue()


def kill_when(ready: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 600) -> str:
    """SIGKILL the whole process group as soon as `ready`, as a power cut would; what it printed."""
    end = time.monotonic() + seconds
    try:
        while not ready():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, "never came to the point where it was to be killed"
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


def has_checkpoint(project: Path) -> bool:
    """Whether there is a complete one: its digest is written last."""
    return any(project.glob("runs/train-*/step-*/state.sha256"))


def steps_of(curve: Path) -> list[int]:
    _, *points = (line.split("\t") for line in curve.read_text().splitlines())
    return [int(step) for step, *_ in points]


def test_every_stage_runs_though_ingest_and_training_are_killed(project: Path, tmp_path: Path) -> None:
    """tests/test_stage_train_faults.py compares a resumed training with an uninterrupted one."""
    data, shown = project / "data", {"PERSONLAB_LOG": "json", "PERSONLAB_RUN": "weekly-7"}
    outputs = [kill_when((data / ".ingest.partial").is_dir, start("repro", folder=project, **shown))]
    assert not (data / "ingest").exists()  # nothing half-written is in its place
    outputs.append(kill_when(lambda: has_checkpoint(project), start("repro", folder=project, **shown)))
    assert not (data / "train").exists()
    outputs.append(dvc("repro", folder=project, **shown))
    assert "resuming from step" in outputs[-1]
    assert "waiting for data; " in outputs[-1]
    assert "s of validation not included" in outputs[-1]
    assert not list(project.glob("runs/train-*"))

    lines = [line for output in outputs for line in output.splitlines()]
    logged = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    assert {line["stage"] for line in logged} == set(STAGES)
    experiment = {name: section for name, section in TINY.items() if name != "compute"}
    digest = params_hash(Params.model_validate(experiment))
    assert {(line["run"], line["params"]) for line in logged} == {("weekly-7", digest)}
    scores = json.loads((data / "metrics/evaluate.json").read_text())
    assert list(scores) == ["keypoints", "segm"]
    assert (data / "evaluate/gallery.jpg").is_file()
    assert steps_of(data / "plots/train/loss.tsv") == [40]  # no step is in a curve twice
    assert steps_of(data / "plots/train/ap.tsv") == [20, 40]
    header, *points = (line.split("\t") for line in (data / "plots/train/ap.tsv").read_text().splitlines())
    assert header == ["step", *scores]
    assert all(0 <= float(ap) <= 1 for _, *aps in points for ap in aps)
    for stage in STAGES:
        assert (data / stage).is_dir()

    shutil.copytree(data / "acquire", tmp_path / "data/acquire")
    ingest.run(Params.model_validate(TINY), tmp_path)
    undisturbed = sorted((tmp_path / "data/ingest").rglob("*.parquet"))
    assert undisturbed
    for path in undisturbed:
        assert (project / path.relative_to(tmp_path)).read_bytes() == path.read_bytes()


def test_a_second_run_does_nothing(project: Path) -> None:
    again = dvc("repro", folder=project)
    assert "Running stage" not in again
    assert "up to date" in again


def test_other_inference_reruns_only_infer_and_evaluate(project: Path) -> None:
    write_params(project, TINY | {"infer": {"sides": [97, 129], "stride": 16}, "decode": {"nms": "hard"}})
    output = dvc("repro", folder=project)
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in output] == ["infer", "evaluate"]
    assert "decode.nms" in dvc_here("params", "diff", folder=project)
    assert "AP" in dvc_here("metrics", "show", "data/metrics/evaluate.json", folder=project)
    assert "evaluate" in dvc_here("dag", folder=project)
    dvc_here("plots", "show", "--out", str(project / "plots"), folder=project)
    assert "Precision over recall, masks" in (project / "plots/index.html").read_text()
    write_params(project, TINY)
    assert "Running stage" not in dvc("repro", folder=project)  # from the run cache


def test_where_it_is_computed_reruns_nothing(project: Path) -> None:
    compute = {"gpu": True, "workers": 2, "checkpoint_every": 9, "max_failures": 0, "ray_address": "auto"}
    write_params(project, TINY | {"compute": compute | {"storage_path": "elsewhere"}})
    assert "up to date" in dvc_here("status", folder=project)
    write_params(project, TINY)


def test_other_initial_weights_under_the_same_name_are_noticed(project: Path) -> None:
    (project / "models/init.safetensors").write_bytes(b"first")
    write_params(project, TINY | {"model": TINY["model"] | {"init": "models/init.safetensors"}})
    changed = dvc_here("status", "train", folder=project)
    assert "models/init.safetensors" in changed
    dvc_here("commit", "--force", "train", folder=project)  # as if it had been trained on them
    assert "models/init.safetensors" not in dvc_here("status", "train", folder=project)
    (project / "models/init.safetensors").write_bytes(b"second")
    assert "models/init.safetensors" in dvc_here("status", "train", folder=project)
    write_params(project, TINY)
