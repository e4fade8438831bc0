"""This pipeline with parameters so small that its eight real stages take about a minute."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from personlab.params import NO_FOLDER, RANDOM, Params
from tests.conftest import ROOT

STAGES = ("acquire", "ingest", "estimator", "impute", "targets", "train", "infer", "evaluate")
TINY: dict[str, Any] = {
    "acquire": {
        "source": "sample",
        "sample": {"train_images": 12, "val_images": 4, "width": 320, "height": 240},
    },
    "estimator": {"steps": 4, "batch": 4, "width": 8},
    "ingest": {"row_group": 4},
    "model": {"backbone": "resnet18", "width": 8, "radius": 12},
    "train": {"crop": 97, "batch": 2, "steps": 40, "optimizer": "adam"}
    | {"validate_every": 20, "validate_images": 2, "validate_side": 97}
    | {"average_from": 0.05},  # before the first checkpoint: what is killed has averaged already
    "infer": {"sides": [129], "stride": 16},
    "decode": {"nms_radius": 5, "bin": 1},
    "evaluate": {"gallery": 2},
    "compute": {"checkpoint_every": 5},
}


def project(folder: Path) -> None:
    """Make a Git and DVC repository of the pipeline, committed, with nothing run."""
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    # with numba's cache, but without files that another process may be writing
    written = shutil.ignore_patterns("*.pyc*", "*.tmp.*")
    shutil.copytree(ROOT / "personlab", folder / "personlab", ignore=written)
    (folder / "models").mkdir()
    shutil.copy(ROOT / RANDOM, folder / RANDOM)
    (folder / "data").mkdir()
    for name in ("data/.gitignore", NO_FOLDER):
        shutil.copy(ROOT / name, folder / name)
    write_params(folder, TINY)
    _run(folder, "git", "init", "-q")
    _run(folder, sys.executable, "-m", "dvc", "init", "-q")
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots", dirs_exist_ok=True)
    _run(folder, "git", "add", ".")
    _run(folder, "git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "tiny")


def write_params(folder: Path, sections: dict[str, Any]) -> None:
    """Every parameter spelled out, as DVC wants the ones it watches."""
    complete = Params.model_validate(sections).model_dump(mode="json")
    (folder / "params.yaml").write_text(yaml.safe_dump(complete, sort_keys=False))


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True)
