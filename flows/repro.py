"""Bring one DVC stage up to date in a process group of its own, and hear every line it says.

Knows DVC, not Prefect. A flow that is cancelled, interrupted or killed leaves no stage running behind it
(see `flows.leash`).
"""

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# what a stage printed last; enough to hold any error message in full
TAIL_LINES = 60
LEASH = Path(__file__).with_name("leash.py")
COLOUR = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
# how an error begins: personlab's own (`personlab: file: reason`), DVC's, the last line of a traceback
ERROR = re.compile(r"personlab: |error\b|(\w+\.)*\w*(Error|Exception|Interrupt)\b", re.IGNORECASE)
DVC_FAILED = "ERROR: failed to reproduce "


class StageError(Exception):
    """`dvc repro` failed; the message begins with the text of the stage's own error."""


def repro(stage: str, project: Path, say: Callable[[str], None]) -> str | None:
    """Run `dvc repro <stage>`: the stage and whatever it needs that is out of date.

    Waits while another DVC command holds the project's lock.

    Args:
        stage: a stage of `project`/dvc.yaml.
        project: the folder with dvc.yaml.
        say: is handed each line as it is printed, without colours.

    Returns:
        DVC's reason why the stage did not have to run; None if it ran.

    Raises:
        StageError: DVC or a stage failed.
    """
    command = (sys.executable, "-m", "dvc", "--wait-for-lock", "repro", stage)
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    reason: str | None = None
    with leashed(command, project) as process:
        assert process.stdout is not None
        for raw in process.stdout:
            line = COLOUR.sub("", raw).rstrip()
            if not line:
                continue
            say(line)
            tail.append(line)
            if line.startswith((f"Stage '{stage}' didn't change", f"Stage '{stage}' is cached")):
                reason = line
        status = process.wait()
    if status != 0:
        raise StageError(error_text(tail) or f"dvc repro {stage} ended with status {status} and no word")
    return reason


def is_error(line: str) -> bool:
    return ERROR.match(line) is not None


def error_text(tail: Sequence[str]) -> str:
    """The error's own words: from the last line that names an error to the end, DVC's verdict after it.

    A stage that names no error (killed, say) is quoted by its last line.
    """
    own = [line for line in tail if not line.startswith(DVC_FAILED)]
    verdict = [line for line in tail if line.startswith(DVC_FAILED)]
    first = max((row for row, line in enumerate(own) if is_error(line)), default=len(own) - 1)
    return "\n".join((*own[max(first, 0) :], *verdict))


@contextmanager
def leashed(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A running command whose whole process group is gone when the block is left, however it is left."""
    process = subprocess.Popen(
        (sys.executable, str(LEASH), *command),
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def environment() -> dict[str, str]:
    """Ours, with lines sent at once and `python` in dvc.yaml meaning the interpreter that runs the flow."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"}
