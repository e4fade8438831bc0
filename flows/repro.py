"""Bring one DVC stage up to date. Knows DVC, not Prefect."""

import sys
from collections.abc import Mapping
from pathlib import Path

from personlab.utils import process
from personlab.utils.process import OnLine, OutputLine


def repro(
    stage: str,
    project: Path,
    say: OnLine,
    *,
    force: bool = False,
    environment: Mapping[str, str] | None = None,
) -> str | None:
    """Run `dvc repro <stage>`: the stage and whatever it needs that is out of date.

    Waits while another DVC command holds the project's lock.

    Args:
        stage: a stage of `project`/dvc.yaml.
        project: the folder with dvc.yaml.
        say: is handed each line as it is printed.
        force: run the stage, and none of those before it, even if it is up to date.
        environment: what the stage needs beside ours.

    Returns:
        DVC's reason why the stage did not have to run; None if it ran.

    Raises:
        CommandError: DVC or a stage failed; the stage's own error comes before DVC's verdict.
    """
    reasons: list[str] = []

    def hear(said: OutputLine) -> None:
        say(said)
        if said.text.startswith((f"Stage '{stage}' didn't change", f"Stage '{stage}' is cached")):
            reasons.append(said.text)

    forced = ("--force", "--single-item") if force else ()
    command = (sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *forced, stage)
    process.run(command, project, hear, environment)
    return reasons[-1] if reasons else None
