"""Work in processes: in order, with its errors, and without processes that outlive the one that began it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from personlab.utils.parallel import in_processes

ENDLESS = """
import os, time
from personlab.utils.parallel import in_processes

if __name__ == "__main__":
    os.cpu_count = lambda: 2
    list(in_processes(time.sleep, [600] * 4, min_per_process=1))
"""


def process(_: int) -> int:
    return os.getpid()


@pytest.fixture
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)


@pytest.mark.usefixtures("two_processors")
def test_results_are_in_order_and_from_other_processes() -> None:
    assert list(in_processes(hex, range(300), min_per_process=10)) == [hex(number) for number in range(300)]
    found = set(in_processes(process, range(300), min_per_process=10))
    assert os.getpid() not in found
    assert len(found) <= 2


@pytest.mark.usefixtures("two_processors")
def test_few_items_stay_in_this_process() -> None:
    assert set(in_processes(process, range(19), min_per_process=10)) == {os.getpid()}


@pytest.mark.usefixtures("two_processors")
def test_an_exception_is_raised_here() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(in_processes(int, ["1", "2", "three", "4"], min_per_process=1))


def test_a_kill_ends_the_processes_too(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    with subprocess.Popen([sys.executable, script]) as parent:
        until = time.monotonic() + 60
        while len(children := psutil.Process(parent.pid).children(recursive=True)) < 3:  # and a tracker
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(1)  # until they work
        parent.kill()
    assert psutil.wait_procs(children, timeout=30)[1] == []
