"""Locks between processes and threads."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from personlab.errors import UserError
from personlab.utils.files import file_lock


def test_a_lock_is_exclusive_and_released_when_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "runs/retrain.lock"
    code = f"""
from pathlib import Path
from personlab.utils.files import file_lock
with file_lock(Path({str(path)!r})):
    print("locked", flush=True)
    input()
"""
    command = (sys.executable, "-c", code)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match="another retraining"), file_lock(path, "retraining"):
            pass
        other.kill()
    with (
        file_lock(path, "retraining"),
        pytest.raises(UserError, match="another retraining"),
        file_lock(path, "retraining"),
    ):
        pass


def test_a_lock_can_be_waited_for(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", list[str]()

    def second() -> None:
        with file_lock(path):
            order.append("second")

    thread = threading.Thread(target=second)
    with file_lock(path):
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
