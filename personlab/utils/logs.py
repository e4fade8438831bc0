"""The logger `personlab`: lines for people or, with PERSONLAB_LOG=json, JSON objects for programs.

Every line names its run, the hash of its parameters and its stage:

    12:00:01 5f6e7d8c 1a2b3c4d train: heatmap 0.0123, seg 0.1034

A JSON line has `time`, `level`, `run`, `stage`, `params` and `message`; lines that report the progress of a
loop also have `progress` with `label`, `done` and `total`. PERSONLAB_RUN sets the name of the run, a random
one by default.
"""

import json
import logging
import os
import sys
import uuid
from datetime import UTC, datetime
from typing import Any, Final

log = logging.getLogger("personlab")

_DIGITS: Final = 8  # of the names shown to people


class Context(logging.Filter):
    """Adds the run, the stage and the hash of the parameters to every record."""

    def __init__(self) -> None:
        super().__init__()
        self.run = os.environ.get("PERSONLAB_RUN") or uuid.uuid4().hex
        self.stage: str | None = None
        self.params: str | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        record.run, record.stage, record.params = self.run, self.stage, self.params
        return True


class Human(logging.Formatter):
    """One line of text; every line of a longer message (a table, a traceback) gets the head."""

    def format(self, record: logging.LogRecord) -> str:
        run, params = (str(getattr(record, name) or "")[:_DIGITS] for name in ("run", "params"))
        stage = f"{name}: " if (name := getattr(record, "stage", None)) else ""
        head = " ".join(filter(None, (self.formatTime(record, "%H:%M:%S"), run, params)))
        message = super().format(record).removeprefix(stage)  # most messages begin with it
        return "\n".join(f"{head} {stage}{line}" for line in message.split("\n"))


class Lines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **{name: getattr(record, name) for name in ("run", "stage", "params")},
            "message": super().format(record),
        }
        if progress := getattr(record, "progress", None):
            fields["progress"] = progress
        return json.dumps(fields, ensure_ascii=False)


_context: Final = Context()


def for_programs() -> bool:
    return os.environ.get("PERSONLAB_LOG") == "json"


def start() -> None:
    """Send the log to stderr. The command line calls this once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_context)
    handler.setFormatter(Lines() if for_programs() else Human())
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def set_context(stage: str, params: str | None = None) -> None:
    """Set the stage and the hash of the parameters of all further lines."""
    _context.stage, _context.params = stage, params


def progress(label: str, done: int, total: int | None) -> dict[str, Any]:
    """The `extra` of a record that reports the progress of a loop."""
    return {"progress": {"label": label, "done": done, "total": total}}
