"""A project for benchmarks: photos of COCO, or the rendered sample, with the stages up to `targets` done."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
COCO_MINI = ROOT.parent / "shared/data/coco-mini"


def project(folder: Path, coco: Path, **sections: dict[str, Any]) -> str:
    """Make `folder` a project in which the stages up to `targets` have run; return what its images are.

    Args:
        coco: a COCO layout; the sample is rendered if it does not exist.
        sections: parameters to change.
    """
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    if coco.is_dir():
        params["acquire"] = {"source": "directory", "directory": str(coco.resolve())}
    for name, changes in sections.items():
        params[name] |= changes
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for stage in ("acquire", "ingest"):
        run(folder, stage)
    # no imputation: it needs an estimator, and people without keypoints cost little
    (folder / "data/impute").mkdir()
    shutil.copy(folder / "data/ingest/people.parquet", folder / "data/impute")
    run(folder, "targets")
    return f"photos of {coco.name}" if coco.is_dir() else "rendered images"


def run(folder: Path, stage: str, **environment: str) -> str:
    """Run a stage and return its log; exit if it fails."""
    command = [sys.executable, "-m", "personlab", stage]
    own = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, cwd=folder, env=own, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{stage}: status {done.returncode}\n{done.stderr}")
    return done.stderr
