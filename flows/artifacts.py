"""What a stage shows for itself in the Prefect UI: metrics, tables, pictures, reports.

The UI cannot read the project's files, so pictures travel inside the artifacts, made small enough that no
artifact exceeds a megabyte.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvc.api
from dvc.exceptions import DvcException
from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from personlab.report import data_uri
from personlab.report.differences import Difference, compare, flatten, shown

PICTURE_BYTES = 700_000  # a third more as base64
PICTURE_IN_MARKDOWN = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")

Row = dict[str, Any]


@contextmanager
def for_show(what: str) -> Iterator[None]:
    """Around what is only there to be looked at: that it fails is said in the log, and fails nothing else."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("%s cannot be shown: %s: %s", what, type(error).__name__, error)


@dataclass(frozen=True)
class StageArtifacts:
    """The files of data/<stage> that the stage's flow shows; one that a run did not write is left out."""

    stage: str
    metrics: str | None = "metrics.json"
    tables: tuple[str, ...] = ()  # flat JSON objects
    curves: tuple[str, ...] = ()  # folders
    pictures: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()  # markdown

    def publish(self, project: Path) -> None:
        """Publish the files as artifacts of the running flow, each with a history of its own."""
        folder = project / "data" / self.stage
        if self.metrics is not None and (folder / self.metrics).is_file():
            publish_metrics(self.stage, folder.relative_to(project) / self.metrics, project)
        for name in self._present(self.tables, folder):
            rows = [{"name": key, "value": value} for key, value in read_flat(folder / name).items()]
            create_table_artifact(rows, key=self._key(name), description=f"data/{self.stage}/{name}")
        for name in self.curves:
            if points := read_curves(folder / name):
                create_table_artifact(points, key=self._key(name), description=f"data/{self.stage}/{name}")
        for name in self._present(self.pictures, folder):
            # markdown, because the UI prints the whole URL below an image artifact
            picture = f"![{name}]({data_uri.jpeg(folder / name, PICTURE_BYTES)})"
            create_markdown_artifact(picture, key=self._key(name), description=f"data/{self.stage}/{name}")
        for name in self._present(self.reports, folder):
            create_markdown_artifact(with_pictures(folder / name), key=self._key(name))

    def _present(self, names: tuple[str, ...], folder: Path) -> Iterator[str]:
        return (name for name in names if (folder / name).is_file())

    def _key(self, name: str) -> str:
        return f"{self.stage}-{re.sub('[^a-z0-9]+', '-', Path(name).stem.lower())}"


def read_curves(folder: Path) -> list[Row]:
    """The TSV files of a folder, each a curve over the same steps, as one row a step."""
    rows: dict[int, Row] = {}
    for file in sorted(folder.glob("*.tsv")):
        with file.open(newline="") as lines:
            for point in csv.DictReader(lines, delimiter="\t"):
                row = {name: shown(json.loads(value)) for name, value in point.items()}
                rows.setdefault(row["step"], {}).update(row)
    return list(rows.values())


def publish_metrics(key: str, file: Path, project: Path) -> None:
    """A table of the metrics in `file` (relative to the project) beside those of the last commit."""
    differences = compare(committed_metrics(file, project), read_flat(project / file))
    create_table_artifact(
        metrics_rows(differences, before="last commit"),
        key=f"{key}-metrics",
        description=f"{file.as_posix()} against the last commit",
    )


def metrics_rows(differences: Iterable[Difference], before: str) -> list[Row]:
    """One row a metric. before: what the other column is called."""
    return [
        {"metric": each.name, "now": shown(each.now), before: shown(each.before), "change": each.change}
        for each in differences
    ]


def read_flat(file: Path) -> dict[str, Any]:
    return flatten(json.loads(file.read_text()))


def committed_metrics(file: Path, project: Path) -> dict[str, Any]:
    """The metrics of the last commit; none where it has no such file, or none that DVC still holds."""
    try:
        return flatten(json.loads(dvc.api.read(file.as_posix(), repo=str(project), rev="HEAD")))
    except (OSError, DvcException):
        return {}


def with_pictures(report: Path) -> str:
    """A markdown file with the pictures it refers to inside it."""
    text = report.read_text()
    budget = PICTURE_BYTES // max(1, len(PICTURE_IN_MARKDOWN.findall(text)))

    def embed(found: re.Match[str]) -> str:
        picture = report.parent / found[2]
        return f"![{found[1]}]({data_uri.jpeg(picture, budget)})" if picture.is_file() else found[0]

    return PICTURE_IN_MARKDOWN.sub(embed, text)
