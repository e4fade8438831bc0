"""Runs what is missing of some tables, one experiment after the other, and keeps the page up to date.

One after the other, as each uses the whole machine. An experiment that fails does not keep the others from
running.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from personlab.ablation import pages
from personlab.ablation.clone import clone
from personlab.ablation.experiments import Experiment, Project, Record
from personlab.ablation.tables import TABLES, Table
from personlab.errors import UserError
from personlab.metrics.report import TITLES
from personlab.utils import logs
from personlab.utils.files import write_atomic
from personlab.utils.process import CommandError, OnLine, OutputLine
from personlab.utils.progress import duration

log = logging.getLogger("personlab")


@dataclass(frozen=True)
class Failure:
    """An experiment that came to nothing, and its own words why."""

    experiment: Experiment
    reason: str

    def __str__(self) -> str:
        return f"{self.experiment.name}: {self.reason}"


def run(project: Project, tables: Iterable[Table], page: Path) -> list[Failure]:
    """Run the experiments of some tables that have not run; write the page with all tables.

    Returns:
        Those that failed.

    Raises:
        UserError: nothing can run here, or another ablation is at work.
    """
    wanted = experiments(project, tables)
    missing = {name: each for name, each in wanted.items() if project.record(each) is None}
    log.info("ablate: %d experiments, %d of them to be run", len(wanted), len(missing))
    _write(project, page)
    failures = _run(project, list(missing.values()), page) if missing else []
    log.info("ablate: %s written", page)
    return failures


def experiments(project: Project, tables: Iterable[Table]) -> Mapping[str, Experiment]:
    """By name, each once, in the order of the tables."""
    every = (project.experiment(row) for table in tables for row in table.rows)
    return {experiment.name: experiment for experiment in every}


def listing(project: Project, tables: Iterable[Table]) -> str:
    """Every row with its state and its command, to read."""
    lines: list[str] = []
    for table in tables:
        lines += [table.title]
        for each in pages.findings(project, table).results:
            state = "done" if each.record else "not run"
            lines += [f"  {state:8} {each.label}", f"           {each.experiment.command}"]
    return "\n".join(lines)


def _run(project: Project, missing: Sequence[Experiment], page: Path) -> list[Failure]:
    failures: list[Failure] = []
    try:
        with clone(project.folder, project.commit) as place:
            for number, experiment in enumerate(missing, start=1):
                label, began = f"{number}/{len(missing)} {experiment.name}", time.monotonic()
                log.info(
                    "%s: %s",
                    label,
                    experiment.command,
                    extra=logs.progress("ablate", number - 1, len(missing)),
                )
                try:
                    found = project.run(experiment, place, _listener(label))
                except (CommandError, UserError) as error:
                    failures.append(Failure(experiment, str(error)))
                    log.error("%s failed: %s", label, error)
                    continue
                _write(project, page)
                log.info("%s: %s (%s)", label, _scores(found), duration(time.monotonic() - began))
    except CommandError as error:
        raise UserError(f"{project.folder.resolve()}: {error}") from None
    except KeyboardInterrupt:
        log.info("ablate: interrupted; the same command goes on from here")
        raise
    return failures


def _write(project: Project, page: Path) -> None:
    found = [pages.findings(project, table) for table in TABLES]
    write_atomic(page, pages.markdown(project, found))


def _listener(label: str) -> OnLine:
    def say(said: OutputLine) -> None:
        how = (
            logs.progress(said.progress.label, said.progress.done, said.progress.total)
            if said.progress
            else None
        )
        log.log(said.level, "%s: %s", label, said.text, extra=how)

    return say


def _scores(record: Record) -> str:
    return ", ".join(f"{TITLES[task]} AP {record.column(task, 'AP'):.3f}" for task in record.metrics)
