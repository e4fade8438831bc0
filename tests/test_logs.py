"""What a line of the log says of itself."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from personlab.params import Params
from personlab.tables import params_hash
from personlab.utils import logs, progress


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    call = (sys.executable, "-m", "personlab", *arguments)
    env = os.environ | environment
    return subprocess.run(call, cwd=folder, env=env, capture_output=True, text=True)


def test_lines_for_programs_and_for_people(tmp_path: Path) -> None:
    sample = {"acquire": {"sample": {"train_images": 2, "val_images": 1, "width": 160, "height": 120}}}
    (tmp_path / "params.yaml").write_text(json.dumps(sample))
    digest = params_hash(Params.model_validate(sample))
    done = command(tmp_path, "acquire", PERSONLAB_LOG="json", PERSONLAB_RUN="weekly-7")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert (line["run"], line["stage"], line["params"]) == ("weekly-7", "acquire", digest)
        assert line["level"] == "info"
    assert lines[0]["message"].startswith("acquire: train: 2 images")

    (tmp_path / "params.yaml").write_text("acquire: {sourze: sample}")
    failed = command(tmp_path, "acquire", PERSONLAB_LOG="json")
    assert failed.returncode == 1
    (line,) = [json.loads(line) for line in failed.stderr.splitlines()]
    assert line["level"] == "error"
    assert "unknown key 'acquire.sourze'" in line["message"]


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("personlab").makeRecord("personlab", 20, "x", 1, message, (), None, extra=extra)
    context = logs.Context()
    context.run, context.stage, context.params = "5f6e7d8c9b0a", "train", "1a2b3c4d5e6f"
    assert context.filter(made)
    return made


def test_a_line_for_people() -> None:
    line = logs.Human().format(record("train: half way"))
    assert line.partition(" ")[2] == "5f6e7d8c 1a2b3c4d train: half way"


@pytest.mark.parametrize("message", ["train: half\nway", "half\nway"])
def test_every_line_for_people_says_where_it_belongs(message: str) -> None:
    lines = logs.Human().format(record(message)).split("\n")
    assert [line.partition(" ")[2] for line in lines] == [
        "5f6e7d8c 1a2b3c4d train: half",
        "5f6e7d8c 1a2b3c4d train: way",
    ]


def test_a_line_that_says_how_far() -> None:
    line = logs.Lines().format(record("train: 5/10", **logs.progress("train", 5, 10)))
    assert json.loads(line)["progress"] == {"label": "train", "done": 5, "total": 10}


def test_progress_tells_programs_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    with caplog.at_level("INFO", logger="personlab"):
        assert list(progress.progress(range(3), label="count")) == [0, 1, 2]
    assert [each.progress for each in caplog.records] == [
        {"label": "count", "done": done, "total": 3} for done in range(3)
    ]
