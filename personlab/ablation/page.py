"""docs/ablations.md: the tables with our figures above the paper's, and the command of each row."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from personlab.ablation.experiments import SAMPLES, Project, Result
from personlab.ablation.tables import TABLES, Table
from personlab.metrics import bootstrap
from personlab.report.differences import NOTHING
from personlab.utils.git import git

Results = Sequence[Result | None]  # of a table's rows; None where one has not been run

_INTRODUCTION: Final = """\
# Ablations

The tables of the paper's appendix A and its comparison of one scale with several, on other data and with
another network: compare the signs of differences, not values. Written by `personlab ablate`; do not edit.

- **Data**: {data}. Scored: {images} images, {people} people, {posed} with keypoints.
- **Network**: {model.backbone} of width {model.width}, trained from {weights} for {train.steps} steps of
  {train.batch} crops of {train.crop} pixels, seed {train.seed}.
- **Parameters**: those of `params.yaml` at `{commit}`, except what a row's command sets. Inputs of 1401
  pixels in the paper have {side} here, others are in proportion.

Each row has our figures, and below them the paper's. A difference is the row's value minus that of the row in
bold type. Both rows are scored on the same {samples} resamplings of the validation images (a paired
bootstrap), and 95% of the differences lie between the two percentiles. If 0 does too, the verdict is
*undecided*; otherwise our difference has the sign of the paper's (*agrees*) or not (*disagrees*). This covers
chance in the choice of images, not in training: rows that retrain do so once, with one seed."""


def markdown(project: Project) -> str:
    """The whole page."""
    acquire, model, results = project.params.acquire, project.params.model, project.results()
    people = [each for row in project.images.values() for each in row["people"] if not each["crowd"]]
    introduction = _INTRODUCTION.format(
        data=f"the rendered sample ({acquire.sample})" if acquire.source == "sample" else acquire.directory,
        images=len(project.images),
        people=len(people),
        posed=sum(any(person["visibility"]) and not person["imputed"] for person in people),
        model=model,
        weights=f"{model.init or 'random weights'}{'' if model.init_heads else ' (backbone only)'}",
        train=project.params.train,
        commit=git(project.folder, "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"),
        side=project.side,
        samples=SAMPLES,
    )
    return "\n\n".join([introduction, *(_section(project, table, results) for table in TABLES)]) + "\n"


def verdict(low: float, high: float, paper: float) -> str:
    """Whether an interval has the sign of the paper's difference; undecided if either has none."""
    if not (low > 0 or high < 0) or paper == 0:  # NaN has none
        return "undecided"
    return "agrees" if (low > 0) == (paper > 0) else "disagrees"


def _section(project: Project, table: Table, found: Mapping[str, Result]) -> str:
    labels = [row.label(project.side) for row in table.rows]
    experiments = [project.experiment(row) for row in table.rows]
    results = [found.get(experiment.name) for experiment in experiments]
    figures, differences = _figures(table, labels, results), list(_differences(table, labels, results))
    verdicts = sorted(Counter(row[2] for row in differences).items())
    state = "Verdicts: " + (", ".join(f"{count} {name}" for name, count in verdicts) or "none yet") + "."
    if missing := results.count(None):
        state += f" Not run: {missing} of {len(results)} rows; `personlab ablate {table.name}`."
    parts = [f"## {table.title}", state, _table(("row", "", *table.columns), figures, words=2)]
    if differences:
        header = ("row", "column", "verdict", "ours", "2.5%", "97.5%", "paper")
        parts += [f"Differences to *{labels[table.baseline]}*:", _table(header, differences, words=3)]
    commands = "\n".join(experiment.command for experiment in experiments)
    return "\n\n".join([*parts, f"```\n{commands}\n```"])


def _figures(table: Table, labels: Sequence[str], results: Results) -> Iterator[list[str]]:
    for row, (label, result) in enumerate(zip(labels, results, strict=True)):
        scores = result.scores(table.task) if result else {}
        ours = [_number(scores.get(column, math.nan)) for column in table.columns] if result else []
        yield [f"**{label}**" if row == table.baseline else label, "ours" if ours else "not run", *ours]
        yield ["", "paper", *map(_number, table.figures[row])]


def _differences(table: Table, labels: Sequence[str], results: Results) -> Iterator[list[str]]:
    """Of every row that has been run to the baseline, in the columns that the paper compares."""
    base, task = results[table.baseline], table.task
    for row, result in enumerate(results):
        if result is None or base is None or row == table.baseline:
            continue
        for column in table.claims:
            ours = result.scores(task)[column] - base.scores(task)[column]
            low, high = bootstrap.interval(result.resampled(task, column) - base.resampled(task, column))
            paper = table.difference(row, column)
            numbers = [_number(value, "+") for value in (ours, low, high, paper)]
            yield [labels[row], column, verdict(low, high, paper), *numbers]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int) -> str:
    """The first `words` columns hold words, the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def _number(value: float, sign: str = "") -> str:
    return NOTHING if math.isnan(value) else f"{value:{sign}.3f}"
