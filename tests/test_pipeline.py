"""The whole pipeline through DVC, and what follows it, on people whose keypoints are not COCO's.

Small, but every stage is real, and killed in the middle.
"""

import json
import math
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
from typing import Any

import pyarrow.compute as pc
import pytest
from dvc import cli
from PIL import Image

from personlab.data import images
from personlab.inference.job import Job, make_plan
from personlab.inference.listing import list_images
from personlab.inference.overlays import draw
from personlab.model.network import from_checkpoint
from personlab.params import Params
from personlab.report import page
from personlab.stages import acquire, estimator, evaluate, impute, infer, ingest, targets, train
from personlab.synthetic.dataset import LIMBS
from personlab.tables import PEOPLE, params_hash, read_dataset, read_table
from personlab.utils.storage import Folder
from personlab.weights import onnx
from tests import tiny
from tests.batches import begin, make_all
from tests.tiny import STAGES, TINY, write_params

pytestmark = pytest.mark.slow

PARAMS: dict[str, Any] = TINY | {
    "acquire": {"sample": TINY["acquire"]["sample"] | {"keypoints": 14}},
    "infer": {"sides": [97, 129], "stride": 16},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, ray_local: str) -> Iterator[Path]:
    """A Git and DVC repository with this pipeline, tiny parameters, and nothing run; stages share one Ray."""
    folder = tmp_path_factory.mktemp("project")
    tiny.project(folder)
    write_params(folder, PARAMS)
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


def results(root: Path, stage: str) -> Any:
    return json.loads((root / f"data/metrics/{stage}.json").read_bytes())


def steps_of(curve: Path) -> list[int]:
    _, *points = (line.split("\t") for line in curve.read_text().splitlines())
    return [int(step) for step, *_ in points]


@pytest.fixture(scope="module")
def outputs(project: Path) -> list[str]:
    """What `dvc repro` printed: killed in ingest, killed in training, and to the end."""
    data, shown = project / "data", {"PERSONLAB_LOG": "json", "PERSONLAB_RUN": "weekly-7"}
    printed = [kill_when((data / ".ingest.partial").is_dir, start("repro", folder=project, **shown))]
    assert not (data / "ingest").exists()  # nothing half-written is in its place
    printed.append(kill_when(lambda: has_checkpoint(project), start("repro", folder=project, **shown)))
    assert not (data / "train").exists()
    return [*printed, dvc("repro", folder=project, **shown)]


def test_every_stage_runs_though_ingest_and_training_are_killed(
    project: Path, outputs: list[str], tmp_path: Path
) -> None:
    """tests/test_stage_train_faults.py compares a resumed training with an uninterrupted one."""
    data = project / "data"
    assert "resuming from step" in outputs[-1]
    assert "waiting for data; " in outputs[-1]
    assert "s of validation not included" in outputs[-1]
    assert not list(project.glob("runs/train-*"))

    lines = [line for output in outputs for line in output.splitlines()]
    logged = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    assert {line["stage"] for line in logged} == set(STAGES)
    experiment = {name: section for name, section in PARAMS.items() if name != "compute"}
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
    ingest.run(Params.model_validate(PARAMS), tmp_path)
    undisturbed = sorted((tmp_path / "data/ingest").rglob("*.parquet"))
    assert undisturbed
    for path in undisturbed:
        assert (project / path.relative_to(tmp_path)).read_bytes() == path.read_bytes()


def test_the_estimator_is_measured_on_the_validation_people(project: Path, outputs: list[str]) -> None:
    val = read_table(project / "data/ingest/people.parquet", PEOPLE).filter(pc.field("split") == "val")
    posed = [person for person in val.to_pylist() if any(person["visibility"])]
    metrics = results(project, "estimator")
    assert metrics["people"] == len(posed) > 0
    for size in ("full", "small"):
        assert 0 <= metrics[size]["oks"] <= 1
        assert 0 <= metrics[size]["pck"] <= 1
        points = json.loads((project / f"data/plots/estimator/pck-{size}.json").read_bytes())
        names = [point["keypoint"] for point in points]
        assert set(names) <= set(LIMBS)
        assert len(set(names)) == len(names) > 0
        assert all(0 <= point["pck"] <= 1 for point in points)
    curve = json.loads((project / "data/plots/estimator/loss.json").read_bytes())
    assert [point["step"] for point in curve] == [1, 2, 3, 4]
    assert all(math.isfinite(point["loss"]) for point in curve)
    assert not list(project.glob("runs/estimator-*"))


def test_a_second_run_does_nothing(project: Path, outputs: list[str]) -> None:
    again = dvc("repro", folder=project)
    assert "Running stage" not in again
    assert "up to date" in again


def test_dvc_shows_parameters_metrics_stages_and_plots(project: Path, outputs: list[str]) -> None:
    assert "acquire.sample.keypoints" in dvc_here("params", "diff", folder=project)
    assert "AP" in dvc_here("metrics", "show", "data/metrics/evaluate.json", folder=project)
    assert "evaluate" in dvc_here("dag", folder=project)
    dvc_here("plots", "show", "--out", str(project / "plots"), folder=project)
    assert "Precision over recall, masks" in (project / "plots/index.html").read_text()


# --- the keypoints ------------------------------------------------------------------------------------------


def test_every_stage_has_the_keypoints_of_the_data(project: Path, outputs: list[str]) -> None:
    skeleton = read_dataset(project / "data").skeleton
    assert skeleton.keypoints == LIMBS
    assert ("neck", "head_top") in [(LIMBS[a], LIMBS[b]) for a, b in skeleton.tree]
    assert from_checkpoint(project / "data/infer/model.safetensors", stride=16).skeleton == skeleton
    assert "head top" in (project / "data/evaluate/report.md").read_text()
    for picture in ("ingest/sheet.jpg", "evaluate/gallery.jpg"):
        Image.open(project / "data" / picture).verify()


def test_the_model_is_exported_and_used_with_its_keypoints(
    project: Path, outputs: list[str], tmp_path: Path
) -> None:
    import onnxruntime

    weights = project / "data/infer/model.safetensors"
    onnx.export(weights, tmp_path / "model.onnx")
    described = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(described["personlab.keypoints"]) == list(LIMBS)

    listing = list_images(str(project / "data/acquire/val2017"))
    plan = make_plan(listing, weights, Params.model_validate(PARAMS).infer, part_size=4)
    out = Folder(str(tmp_path / "out"))
    make_all(begin((Job(plan, listing.root, out, str(weights), images.decode), listing)))
    for path in draw(listing, out, tmp_path / "drawn", 2):
        Image.open(path).verify()


def test_the_report_shows_it(project: Path, outputs: list[str], tmp_path: Path) -> None:
    page.write(page.Results(project, None), tmp_path / "index.html")
    assert (tmp_path / "index.html").read_text().count("<figure") >= 3


def test_without_masks_poses_are_trained_and_scored(
    project: Path, outputs: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the model with masks of the same keypoints, whose heads for poses are taken."""
    shutil.copytree(project / "data/acquire", tmp_path / "mine")
    for path in (tmp_path / "mine/annotations").iterdir():
        content = json.loads(path.read_bytes())
        for person in content["annotations"]:
            del person["segmentation"], person["area"]
        path.write_text(json.dumps(content))
    init = str(project / "data/train/model.safetensors")
    settings = Params.model_validate(
        PARAMS
        | {
            "acquire": {"source": "directory", "directory": str(tmp_path / "mine")},
            "model": PARAMS["model"] | {"init": init},
            "train": PARAMS["train"] | {"steps": 3, "validate_every": 3},
        }
    )
    acquire.run(settings, tmp_path)
    ingest.run(settings, tmp_path)
    # the training of the estimator, but for its steps
    batches = list(estimator._batches(settings.estimator, tmp_path, done=0))
    assert len(batches) == settings.estimator.steps
    assert all(batch.labelled.any() for batch in batches)
    shutil.copytree(project / "data/estimator", tmp_path / "data/estimator")
    for stage in (impute, targets, train, infer, evaluate):
        stage.run(settings, tmp_path)
    assert not read_dataset(tmp_path / "data").masks
    assert not from_checkpoint(tmp_path / "data/infer/model.safetensors", stride=16).masks
    assert results(tmp_path, "evaluate")["segm"]["AP"] is None
    assert results(tmp_path, "ingest")["train"]["people"]["no mask"] > 0
    assert "only its backbone" not in caplog.text
