"""Run a command in a process group of its own and hear every line that it says.

Whoever runs one and is cancelled, interrupted or killed leaves nothing running behind
(`personlab.utils.supervisor`).
"""

import json
import logging
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUPERVISOR = Path(__file__).with_name("supervisor.py")
# what a command said last; enough to hold any error message in full
TAIL_LINES = 60
COLOUR = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
# how an error begins: `personlab: file: reason`, DVC's, the last line of a traceback
ERROR = re.compile(r"personlab: |error\b|(\w+\.)*\w*(Error|Exception|Interrupt)\b", re.IGNORECASE)
DVC_FAILED = "ERROR: failed to reproduce "
LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class CommandError(Exception):
    """A command failed; the message begins with the text of its own error."""


@dataclass(frozen=True)
class Progress:
    """How far a loop of the command is."""

    label: str
    done: int
    total: int | None


@dataclass(frozen=True)
class OutputLine:
    """A line that a command printed."""

    text: str
    level: int = logging.INFO
    progress: Progress | None = None


OnLine = Callable[[OutputLine], None]


def run(
    command: Sequence[str], folder: Path, say: OnLine, environment: Mapping[str, str] | None = None
) -> None:
    """Run a command in a folder.

    Args:
        say: is handed each line as it is printed.
        environment: what it needs beside ours.

    Raises:
        CommandError: its status is not 0.
    """
    tail: deque[OutputLine] = deque(maxlen=TAIL_LINES)
    with supervised(command, folder, environment) as process:
        assert process.stdout is not None
        for raw in process.stdout:
            said = parse_line(raw)
            if said.text:
                say(said)
                tail.append(said)
        status = process.wait()
    if status != 0:
        raise CommandError(error_text(tail) or f"{' '.join(command)} ended with status {status} and no word")


def parse_line(raw: str) -> OutputLine:
    """A line of personlab's log for programs, or of anything else."""
    line = COLOUR.sub("", raw).rstrip()
    if line.startswith("{"):
        try:
            return _logged(json.loads(line))
        except (ValueError, KeyError, TypeError):
            pass  # somebody else's JSON
    if ERROR.match(line):
        return OutputLine(line, logging.ERROR)
    return OutputLine(line, logging.WARNING if line.startswith("WARNING") else logging.INFO)


def _logged(fields: Mapping[str, Any]) -> OutputLine:
    progress = fields.get("progress")
    return OutputLine(
        text=fields["message"],
        level=LEVELS[fields["level"]],
        progress=Progress(**progress) if progress else None,
    )


def error_text(tail: Sequence[OutputLine]) -> str:
    """The error's own words: from the last line that is an error to the end, DVC's verdict after it.

    A command that names no error (killed, say) is quoted by its last line.
    """
    own = [said for said in tail if not said.text.startswith(DVC_FAILED)]
    verdict = [said for said in tail if said.text.startswith(DVC_FAILED)]
    first = max((row for row, said in enumerate(own) if said.level >= logging.ERROR), default=len(own) - 1)
    return "\n".join(said.text for said in (*own[max(first, 0) :], *verdict))


@contextmanager
def supervised(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A running command whose whole process group is gone when the block is left, however it is left."""
    process = subprocess.Popen(
        (sys.executable, str(SUPERVISOR), *command),
        cwd=folder,
        env=_environment() | dict(environment or {}),
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


def _environment() -> dict[str, str]:
    """Ours, with lines sent at once and for programs, and `python` meaning the one that runs us."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", "PERSONLAB_LOG": "json"}
