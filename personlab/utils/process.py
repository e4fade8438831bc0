"""Run a command in its own process group and stream its output line by line.

No process of the command outlives the caller, even if the caller is killed (`personlab.utils.supervisor`).
"""

import json
import logging
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# -P: the folder of a script is not searched for modules, so that files.py beside it shadows none
SUPERVISOR: Final = (sys.executable, "-P", str(Path(__file__).with_name("supervisor.py")))
TAIL_LINES: Final = 60  # enough for any error message
COLOUR: Final = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
# the beginning of an error: `personlab: file: reason`, DVC's, the last line of a traceback
ERROR: Final = re.compile(r"personlab: |error\b|(\w+\.)*\w*(Error|Exception|Interrupt)\b", re.IGNORECASE)
DVC_FAILED: Final = "ERROR: failed to reproduce "
LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class CommandError(Exception):
    """A command failed. The message begins with the command's own error."""


@dataclass(frozen=True)
class Progress:
    """Progress of a loop of the command."""

    label: str
    done: int
    total: int | None


@dataclass(frozen=True)
class OutputLine:
    """A line that a command printed."""

    text: str
    level: int = logging.INFO  # of the module logging
    progress: Progress | None = None


OnLine = Callable[[OutputLine], None]


def run(
    command: Sequence[str], folder: Path, on_line: OnLine, environment: Mapping[str, str] | None = None
) -> None:
    """Run a command in a folder.

    Args:
        on_line: called with each line as it is printed.
        environment: variables added to those of this process.

    Raises:
        CommandError: its exit status is not 0.
    """
    tail: deque[OutputLine] = deque(maxlen=TAIL_LINES)
    with supervised(command, folder, environment) as process:
        assert process.stdout is not None
        for raw in process.stdout:
            line = parse_line(raw)
            if line.text:
                on_line(line)
                tail.append(line)
        status = process.wait()
    if status != 0:
        silent = f"{' '.join(command)} exited with status {status} and printed nothing"
        raise CommandError(error_text(tail) or silent)


def parse_line(raw: str) -> OutputLine:
    """Parse a line of personlab's JSON log, or of any other output."""
    text = COLOUR.sub("", raw).rstrip()
    if text.startswith("{"):
        with suppress(ValueError, KeyError, TypeError):  # JSON of another program
            fields = json.loads(text)
            progress = Progress(**fields["progress"]) if "progress" in fields else None
            return OutputLine(fields["message"], LEVELS[fields["level"]], progress)
    if ERROR.match(text):
        return OutputLine(text, logging.ERROR)
    return OutputLine(text, logging.WARNING if text.startswith("WARNING") else logging.INFO)


def error_text(tail: Sequence[OutputLine]) -> str:
    """The error message in the last lines of a failed command.

    From the last line that is an error to the end, or the last line if none is; DVC's summary comes last.
    """
    lines = [line for line in tail if not line.text.startswith(DVC_FAILED)]
    summary = [line for line in tail if line.text.startswith(DVC_FAILED)]
    errors = [row for row, line in enumerate(lines) if line.level >= logging.ERROR]
    return "\n".join(line.text for line in (*lines[errors[-1] if errors else -1 :], *summary))


@contextmanager
def supervised(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    *,
    stdout: int | None = subprocess.PIPE,
) -> Iterator[subprocess.Popen[str]]:
    """Start a command; its process group is ended when the block, or this process, ends.

    Args:
        environment: variables added to those of this process.
        stdout: of standard output and standard error, as for `subprocess.Popen`.
    """
    process = subprocess.Popen(
        (*SUPERVISOR, *command),
        cwd=folder,
        env=_environment() | dict(environment or {}),
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.STDOUT if stdout else None,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches this process alone
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _environment() -> dict[str, str]:
    """The variables of this process, and those that make programs print unbuffered UTF-8 and JSON logs.

    `python` is the interpreter of this process.
    """
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    output = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "PERSONLAB_LOG": "json"}
    return os.environ | {"PATH": path} | output
