"""The results of a run beside the champion's, as one self-contained HTML file.

This is not a stage: the page depends on the current champion, not on the run alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import jinja2

from personlab import params as parameters
from personlab.metrics.report import TITLES
from personlab.registry.models import Version
from personlab.report import data_uri
from personlab.report.chart import Series, draw
from personlab.report.differences import NOTHING, Difference, changed, compare, flatten
from personlab.utils.files import read_json, write_atomic

Row = dict[str, Any]

_PICTURES: Final = 6  # worst images shown, and best ones
_PICTURE_BYTES, _SHEET_BYTES = 90_000, 400_000
_MEAN: Final = "mean of 0.50 to 0.95"


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
        now = read_json(self.folder / "data/plots/evaluate/precision_recall.json")
        before = read_json(self.champion.folder / "plots/precision_recall.json") if self.champion else []
        return {task: draw([*_series(now, task, before)], x="recall", y="precision") for task in TITLES}

    @property
    def keypoints(self) -> list[Row]:
        """OKS of each keypoint."""
        rows: list[Row] = read_json(self.folder / "data/plots/evaluate/oks_per_keypoint.json")
        return rows

    @property
    def worst(self) -> list[Path]:
        """Pictures of the worst images, worst first."""
        return self._pictures[:_PICTURES]

    @property
    def best(self) -> list[Path]:
        """Pictures of the best images, best first; none of the worst."""
        return self._pictures[_PICTURES:][: -_PICTURES - 1 : -1]

    @property
    def imputed(self) -> Path | None:
        """The contact sheet of imputed keypoints; None if there is none."""
        sheet = self.folder / "data/impute/imputed.png"
        return sheet if sheet.is_file() else None

    @property
    def _pictures(self) -> list[Path]:
        return sorted((self.folder / "data/evaluate/gallery").glob("*.jpg"))


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


def _series(now: Sequence[Row], task: str, before: Sequence[Row]) -> Iterator[Series]:
    for threshold in list(dict.fromkeys(row["threshold"] for row in now))[::-1]:
        name = f"IoU {threshold}" if task == "segm" else f"OKS {threshold}"
        yield Series(name, _points(now, task, threshold))
        if before and threshold == _MEAN:
            yield Series(f"{name}, champion", _points(before, task, threshold), dashed=True)


def _points(curves: Sequence[Row], task: str, threshold: str) -> list[tuple[float, float]]:
    return [
        (row["recall"], row["precision"])
        for row in curves
        if row["task"] == task and row["threshold"] == threshold and row["precision"] is not None
    ]
