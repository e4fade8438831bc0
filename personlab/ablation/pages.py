"""docs/ablations.md: the paper's tables with our figures above the paper's, and how each row was made.

The same records give the same bytes.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from personlab.ablation.experiments import SAMPLES, Experiment, Project, Record
from personlab.ablation.tables import CHOICES, PAPER_SIDE, Row, Table
from personlab.ablation.verdict import Difference
from personlab.errors import UserError
from personlab.params import Acquire, Params
from personlab.utils.git import git

_DIGITS: Final = 10  # of a commit or hash
_NOTHING: Final = "–"
_GENERATOR: Final = "personlab/synthetic"

_READING: Final = f"""\
Each row has our figures, and below them the paper's. A difference is the row's value minus that of the row in
bold type; its interval holds 95% of {SAMPLES} resamplings of the validation images, on which both rows are
scored (a paired bootstrap). Where the interval holds 0 the verdict is *undecided*; otherwise our difference
has the sign of the paper's (*agrees*) or not (*disagrees*). The interval covers chance in the choice of
images, not in training: rows that retrain do so once, with one seed."""


@dataclass(frozen=True)
class Result:
    """A row of a table, and what it found if it has run."""

    row: Row
    label: str
    experiment: Experiment
    record: Record | None


@dataclass(frozen=True)
class Findings:
    """A table with what there is of it."""

    table: Table
    results: tuple[Result, ...]

    @property
    def baseline(self) -> Result:
        return next(result for result in self.results if result.row is self.table.baseline)

    def differences(self) -> list[tuple[Result, str, Difference]]:
        """Of every row that has run, to the baseline, in every column that the paper speaks of."""
        base = self.baseline.record
        return [
            (result, column, self._difference(column, result.row, result.record, base))
            for result in self.results
            for column in self.table.claims
            if result.record and base and result.row is not self.table.baseline
        ]

    def _difference(self, column: str, row: Row, record: Record, baseline: Record) -> Difference:
        table, task = self.table, self.table.task
        return Difference.between(
            (record.column(task, column), record.on_resamplings(task, column)),
            (baseline.column(task, column), baseline.on_resamplings(task, column)),
            paper=round(table.paper(row, column) - table.paper(table.baseline, column), 3),
        )


def findings(project: Project, table: Table) -> Findings:
    experiments = [(row, project.experiment(row)) for row in table.rows]
    return Findings(
        table,
        tuple(
            Result(row, row.label(project.side), experiment, project.record(experiment))
            for row, experiment in experiments
        ),
    )


def markdown(project: Project, tables: Sequence[Findings]) -> str:
    """The whole page."""
    records = (result.record for each in tables for result in each.results if result.record)
    parts = ["# Ablations", _introduction(project, next(records, None)), _READING]
    return "\n\n".join([*parts, *map(_section, tables)]) + "\n"


# --- the head -----------------------------------------------------------------------------------------------


def _introduction(project: Project, record: Record | None) -> str:
    settings = project.params
    inputs = [_data(settings.acquire, project.folder, record), _training(settings), _sides_here(project)]
    return "\n".join(
        (
            "The tables of the paper's appendix A and its comparison of one scale with several, on other",
            "data and with another network: what compares is the direction of differences, not values.",
            "Written by `personlab ablate`, which runs each row as a DVC experiment; not to be edited.\n",
            *(f"- {line}" for line in inputs),
        )
    )


def _data(acquire: Acquire, folder: Path, record: Record | None) -> str:
    scored = ""
    if record:
        scored = f" Scored: {record.images} images, {record.people} people, {record.posed} with keypoints."
    if acquire.source != "sample":
        return f"**Data**: COCO's layout in `{acquire.directory}`.{scored}"
    sample = acquire.sample
    return (
        f"**Data**: the rendered sample, {sample.train_images} images to train on and {sample.val_images} to "
        f"validate on, {sample.width} x {sample.height} pixels, seed {sample.seed}. Its generator's "
        f"settings were fixed before any figure below was looked at{_last_changed(folder)}.{scored}"
    )


def _last_changed(folder: Path) -> str:
    """The commit that changed the generator last, if Git can tell."""
    with suppress(UserError):
        if found := git(folder, "log", "-1", f"--abbrev={_DIGITS}", "--format=`%h` of %cs", "--", _GENERATOR):
            return f" (last changed by {found})"
    return ""


def _training(settings: Params) -> str:
    model, train = settings.model, settings.train
    taken = "the weights" if model.init_heads else "the backbone alone"
    start = f"{taken} of `{model.init}`" if model.init else "random weights"
    return (
        f"**Network**: {model.backbone} of width {model.width}, trained from {start} for {train.steps} "
        f"steps of {train.batch} crops of {train.crop} pixels, seed {train.seed}."
    )


def _sides_here(project: Project) -> str:
    return (
        f"**Parameters**: those of `params.yaml`, but for what a row's command sets. Inputs of {PAPER_SIDE} "
        f"pixels in the paper have {project.side} here, others are in proportion."
    )


# --- a table ------------------------------------------------------------------------------------------------


def _section(found: Findings) -> str:
    table, results = found.table, found.results
    parts = [f"## {table.title}", _state(found), _figures(found)]
    if differences := found.differences():
        parts.append(f"Differences to *{found.baseline.label}*:\n\n{_differences(differences)}")
        parts += _growth(found)
    parts.append(f"How each row was made:\n\n{_origins(results)}")
    return "\n\n".join(parts)


def _state(found: Findings) -> str:
    done = sum(result.record is not None for result in found.results)
    if not done:
        return f"Not yet run: `personlab ablate {_choice(found.table)}`."
    verdicts = Counter(difference.verdict for _, _, difference in found.differences())
    counts = [f"{verdicts[kind]} {kind}" for kind in ("agrees", "disagrees", "undecided") if verdicts[kind]]
    rows = len(found.results)
    missing = "" if done == rows else f" Not run: {rows - done} of {rows} rows."
    return f"Verdicts: {', '.join(counts) or 'none yet'}.{missing}"


def _growth(found: Findings) -> list[str]:
    """How many times its baseline a column has become, where it was expected to grow."""
    table, base = found.table, found.baseline
    if table.growth is None or base.record is None:
        return []
    column, least = table.growth
    task, before = table.task, base.record.column(table.task, column)
    paper = table.paper(base.row, column)
    return [
        f"{result.label}, {column} is {_ratio(result.record.column(task, column), before)} times what it is "
        f"{base.label.lower()}. At least {least} times was expected; in the paper it is "
        f"{_ratio(table.paper(result.row, column), paper)} times."
        for result in found.results
        if result is not base and result.record
    ]


def _choice(table: Table) -> str:
    """What to ask for to get a table."""
    return next(name for name, tables in CHOICES.items() if table in tables)


def _figures(found: Findings) -> str:
    table = found.table
    rows: list[list[str]] = []
    for result in found.results:
        name = f"**{result.label}**" if result is found.baseline else result.label
        rows.append([name, "ours", *_ours(table, result.record)])
        rows.append(["", "paper", *map(_value, result.row.figures)])
    return _table(["row", "", *table.columns], rows, text=2)


def _ours(table: Table, record: Record | None) -> list[str]:
    if record is None:
        return ["not run", *[""] * (len(table.columns) - 1)]
    return [_value(record.column(table.task, column)) for column in table.columns]


def _differences(differences: Iterable[tuple[Result, str, Difference]]) -> str:
    rows = [
        [
            *(result.label, column, each.verdict, _change(each.ours)),
            *(f"{_change(each.low)} to {_change(each.high)}", _change(each.paper)),
        ]
        for result, column, each in differences
    ]
    return _table(["row", "column", "verdict", "ours", "95% interval", "paper"], rows, text=3)


def _origins(results: Iterable[Result]) -> str:
    rows = [
        [
            result.label,
            f"`{result.experiment.command}`",
            f"`{result.record.baseline[:_DIGITS]}`" if result.record else "not run",
            f"`{result.record.commit[:_DIGITS]}`" if result.record else "",
            f"`{result.experiment.digest[:_DIGITS]}`",
        ]
        for result in results
    ]
    return _table(["row", "command", "at commit", "result's commit", "parameters"], rows, text=5)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text: int) -> str:
    """The first `text` columns hold words, the others numbers."""
    rule = ["---"] * text + ["---:"] * (len(header) - text)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def _value(value: float) -> str:
    return _NOTHING if math.isnan(value) else f"{value:.3f}"


def _ratio(value: float, baseline: float) -> str:
    return f"{value / baseline:.2f}" if value >= 0 and baseline > 0 else _NOTHING  # not for NaN


def _change(value: float) -> str:
    return _NOTHING if math.isnan(value) else f"{value:+.3f}"
