"""What make checks before it starts."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from personlab.utils import preflight
from tests.conftest import ROOT

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder on a machine that lacks nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "available_memory", lambda: 64.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1e12, 0, 1e12))


def install(folder: Path) -> None:
    (folder / ".venv").mkdir()
    (folder / ".venv/ready").touch()


@pytest.mark.parametrize("target", preflight.NEEDS)
def test_nothing_is_missing_here(target: str) -> None:
    assert list(preflight.problems(target)) == []


def test_an_old_python_is_named_unless_the_environment_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 10))
    assert list(preflight.problems("demo")) == [
        "Python 3.8 is too old, 3.11 or newer is needed: make PYTHON=python3.11 ..."
    ]
    install(tmp_path)
    assert list(preflight.problems("demo")) == []


def test_a_python_without_venv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == "ensurepip" else object())
    assert "apt install python3-venv" in next(preflight.problems("install"))


def test_git_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "git is missing" in next(preflight.problems("install"))


def test_the_disk_has_to_hold_the_environment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 2e9))
    assert f"{tmp_path}: 2.0 GB of disk are free" in next(preflight.problems("demo"))
    install(tmp_path)
    assert list(preflight.problems("demo")) == []


def test_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: 0.5)
    assert "0.5 GB of memory are available" in next(preflight.problems("demo"))
    monkeypatch.setattr(preflight, "available_memory", lambda: None)
    assert list(preflight.problems("demo")) == []


def test_no_port_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("socket.socket.bind", refuse)
    assert "127.0.0.1 can be listened on (Operation not permitted)" in next(preflight.problems("test"))


@pytest.mark.parametrize(("limit", "gigabytes"), [(None, 8.192), ("max", 8.192), ("3000000000", 2.0)])
def test_memory_is_what_the_container_may_still_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, gigabytes: float
) -> None:
    monkeypatch.undo()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable:    8000000 kB\n")
    if limit:
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
        (tmp_path / "sys/fs/cgroup/memory.current").write_text("1000000000\n")
    assert preflight.available_memory(tmp_path) == pytest.approx(gigabytes)
    assert preflight.available_memory(tmp_path / "nowhere") is None


def test_make_stops_before_it_installs_anything(tmp_path: Path) -> None:
    """With an interpreter that runs the check as a Python without venv would."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    old = tmp_path / "old-python"
    check = "import sys; sys.version_info = (3, 8, 10); import runpy; "
    check += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    old.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{check}" "$@"\n')
    old.chmod(0o755)
    (tmp_path / "personlab/utils").mkdir(parents=True)
    shutil.copyfile(ROOT / "personlab/utils/preflight.py", tmp_path / "personlab/utils/preflight.py")
    made = subprocess.run(
        ["make", "demo", f"PYTHON={old}"], cwd=tmp_path, env=os.environ, capture_output=True, text=True
    )
    assert made.returncode != 0
    assert "make demo cannot start:\n  Python 3.8 is too old" in made.stderr
    assert not (tmp_path / ".venv").exists()
