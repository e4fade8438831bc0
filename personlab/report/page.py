"""The results of a run beside the champion's, as one self-contained HTML file.

This is not a stage: the page depends on the current champion, not on the run alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import jinja2

from personlab import params as parameters
from personlab.errors import UserError
from personlab.metrics.report import MEASURES, TITLES
from personlab.people import SHOWN
from personlab.registry.models import Version
from personlab.report import data_uri
from personlab.report.chart import Series, draw
from personlab.report.differences import NOTHING, Difference, changed, compare, flatten
from personlab.utils.files import read_json, read_tsv, write_atomic
from personlab.utils.git import git

Row = dict[str, Any]

_PICTURES: Final = 4  # the worst of each task, and the best
_PICTURE_BYTES, _SHEET_BYTES = 90_000, 400_000
_USES: Final = {"train": "train on", "val": "validate on"}
_CURVES: Final = "data/plots/evaluate/precision_recall.tsv"

Columns = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Results:
    """The results that `dvc repro` left in a folder, and the champion, if any, to compare them with."""

    folder: Path
    champion: Version | None

    @property
    def scores(self) -> list[Difference]:
        """All scores; `before` is the champion's."""
        before = self.champion.lineage.metrics if self.champion else {}
        return compare(flatten(before), flatten(read_json(self.folder / "data/metrics/evaluate.json")))

    @property
    def parameters(self) -> list[Difference]:
        """The parameters that differ from the champion's."""
        if not self.champion:
            return []
        now = parameters.load(self.folder / "params.yaml")
        return changed(*(flatten(each.model_dump(mode="json")) for each in (self.champion.settings, now)))

    @cached_property
    def curves(self) -> dict[str, str]:
        """Precision over recall as SVG, by task; the champion's mean is dashed."""
        now = read_tsv(self.folder / _CURVES)
        kept = self.champion.folder / "plots/precision_recall.tsv" if self.champion else None
        before = read_tsv(kept) if kept and kept.is_file() else {}
        return {
            task: draw(_series(now, before, measure), x="recall", y="precision")
            for task, measure in MEASURES.items()
        }

    @cached_property
    def training(self) -> dict[str, str]:
        """Losses and validation AP over the steps as SVG; empty of runs without them."""
        charts = {"Losses": "loss", "AP on validation images": "ap"}
        drawn = dict[str, str]()
        for title, name in charts.items():
            path = self.folder / f"data/plots/train/{name}.tsv"
            if path.is_file():
                columns = read_tsv(path)
                _, *names = columns
                drawn[title] = draw(
                    [Series(each, _points(columns, each)) for each in names], x="step", y=name
                )
        return drawn

    @property
    def facts(self) -> list[str]:
        """What was trained, on what, how many people it predicts, and when."""
        settings = parameters.load(self.folder / "params.yaml")
        data, model, train = settings.acquire, settings.model, settings.train
        people = read_json(self.folder / "data/metrics/targets.json")
        predicted = read_json(self.folder / "data/metrics/infer.json")
        confident = f"{predicted['people']} with a score of at least {SHOWN:g}"
        counts = [f"{people[split]['images']} images to {use}" for split, use in _USES.items()]
        return [
            f"data set: {data.directory or data.source}, {', '.join(counts)}",
            f"network: {model.backbone}, width {model.width}, from {model.init or 'random weights'}",
            f"training: {train.steps} steps of {train.batch} crops of {train.crop} pixels",
            f"predictions: {predicted['proposals']} proposals, {confident}",
            *_commit(self.folder),
        ]

    @property
    def keypoints(self) -> list[Row]:
        """OKS of each keypoint."""
        rows: list[Row] = read_json(self.folder / "data/plots/evaluate/oks_per_keypoint.json")
        return rows

    @cached_property
    def pictures(self) -> dict[str, list[Path]]:
        """Pictures of the gallery by title: best and worst poses and masks, false alarms; none twice."""
        folder, shown = self.folder / "data/evaluate", set[str]()
        rows: list[Row] = read_json(folder / "gallery.json")

        def take(rows: Sequence[Row]) -> list[Path]:
            names = [row["file"] for row in rows if row["file"] not in shown][:_PICTURES]
            shown.update(names)
            return [folder / "gallery" / name for name in names]

        sections = dict[str, list[Path]]()
        for task in ("poses", "masks"):
            ranked = sorted(
                (row for row in rows if row["annotated"] and row[task] is not None), key=itemgetter(task)
            )
            sections[f"Best {task}"] = take([row for row in ranked[::-1] if row["detected"]])
            sections[f"Worst {task}"] = take(ranked)
        sections["False alarms"] = take([row for row in rows if not row["annotated"]])
        return sections

    @property
    def imputed(self) -> Path | None:
        """The contact sheet of imputed keypoints; None if there is none."""
        sheet = self.folder / "data/impute/imputed.png"
        return sheet if sheet.is_file() else None


def write(results: Results, path: Path) -> None:
    """Write the page.

    Raises:
        UserError: the stages have not run.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("personlab.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "plain": lambda value: NOTHING if value is None else value,
        "score": lambda value: NOTHING if value is None else f"{value:.4f}",
        "picture": lambda file: data_uri.jpeg(file, _PICTURE_BYTES),
        "sheet": lambda file: data_uri.jpeg(file, _SHEET_BYTES),
    }
    tables = {
        title: [each for each in results.scores if each.name.startswith(f"{task}.")]
        for task, title in TITLES.items()
    }
    page = environment.get_template("report.html").render(results=results, tables=tables, titles=TITLES)
    write_atomic(path, page)


def _commit(folder: Path) -> list[str]:
    """The commit and its date, of a folder in Git."""
    try:
        return ["commit: " + git(folder, "log", "-1", "--format=%h of %cs, %s")]
    except UserError:
        return []


def _series(now: Columns, before: Columns, measure: str) -> list[Series]:
    """The curves of a task, the mean first."""
    series = list[Series]()
    for name in [name for name in now if name.startswith(measure)][::-1]:
        series.append(Series(name, _points(now, name)))
        if name in before and "mean" in name:
            series.append(Series(f"{name}, champion", _points(before, name), dashed=True))
    return series


def _points(columns: Columns, name: str) -> list[tuple[float, float]]:
    """A column over the first one, without what is undefined."""
    steps = next(iter(columns.values()))
    return [(x, y) for x, y in zip(steps, columns[name], strict=True) if x is not None and y is not None]
