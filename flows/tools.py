"""Run commands from inside a flow: their lines go to the run's log, how far they are becomes a bar."""

import sys
from collections.abc import Mapping
from pathlib import Path

from prefect import get_run_logger
from prefect.runtime import flow_run

from flows.progress import ProgressBar
from personlab import commands
from personlab.commands import Said, Say


def personlab(*arguments: str, project: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a command of `personlab` in the project's folder.

    Raises:
        CommandError: it failed.
    """
    command = (sys.executable, "-m", "personlab", *arguments)
    commands.run(command, project, listener(arguments[0]), {**run_name(), **(environment or {})})


def listener(name: str) -> Say:
    """Hears a command called `name` for the running flow."""
    logger, bar = get_run_logger(), ProgressBar(f"{name}-progress")

    def say(said: Said) -> None:
        logger.log(said.level, "%s", said.text)
        bar.hear(said)

    return say


def run_name() -> dict[str, str]:
    """Lets the log lines of every command of a run say to which run they belong."""
    return {"PERSONLAB_RUN": str(flow_run.root_flow_run_id)}
