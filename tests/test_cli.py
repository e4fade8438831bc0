"""The command line as people meet it."""

import subprocess
import sys
from pathlib import Path

import pytest

STAGES = ("acquire", "ingest", "estimator", "impute", "targets", "train", "infer", "evaluate")


def personlab(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "personlab", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_help_names_every_stage_in_order(tmp_path: Path) -> None:
    shown = personlab("--help", folder=tmp_path).stdout
    places = [shown.index(f" {stage} ") for stage in STAGES]
    assert places == sorted(places)


@pytest.mark.parametrize("command", [*STAGES, "oracle"])
def test_every_command_explains_itself(command: str, tmp_path: Path) -> None:
    run = personlab(command, "--help", folder=tmp_path)
    assert run.returncode == 0
    assert "Usage" in run.stdout
    assert len(run.stdout.splitlines()) > 8


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = "import sys, personlab.cli; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_a_misspelt_parameter_ends_with_a_sentence_and_status_one(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("ingest: {max_reject: 1}\n")
    run = personlab("ingest", folder=tmp_path)
    assert run.returncode == 1
    assert "unknown key 'ingest.max_reject'" in run.stderr
    assert "Traceback" not in run.stderr
