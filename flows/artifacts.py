"""What a stage shows for itself in the Prefect UI: metrics, tables, pictures, reports.

The UI cannot read the project's files, so pictures travel inside the artifacts, made small enough that no
artifact exceeds a megabyte.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dvc.api
from dvc.exceptions import DvcException
from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from personlab.report import data_uri
from personlab.report.differences import Difference, compare, flatten, shown

PICTURES = {".jpg", ".png"}
PICTURE_BYTES = 700_000  # a third more as base64
PICTURE_IN_MARKDOWN = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")

Row = dict[str, Any]


@contextmanager
def for_show(what: str) -> Iterator[None]:
    """Around what only shows results: an error is logged as a warning and fails nothing else."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("%s cannot be shown: %s: %s", what, type(error).__name__, error)


def publish(stage: str, project: Path) -> None:
    """Publish what a stage left as artifacts of the running flow, each with a history of its own.

    Metrics are data/metrics/<stage>.json, curves the folders of data/plots/<stage>; pictures and reports lie
    at the top of data/<stage>. What a stage does not have is left out.
    """
    folder = project / "data" / stage
    metrics = Path("data/metrics", f"{stage}.json")
    if (project / metrics).is_file():
        publish_metrics(stage, metrics, project)
    for curve in sorted((project / "data/plots" / stage).glob("*/")):
        if points := read_curves(curve):
            create_table_artifact(points, key=artifact_key(stage, curve), description=f"{curve.name} by step")
    for picture in sorted(each for each in folder.glob("*") if each.suffix in PICTURES):
        # markdown, because the UI prints the whole URL below an image artifact
        shown = f"![{picture.name}]({data_uri.jpeg(picture, PICTURE_BYTES)})"
        create_markdown_artifact(shown, key=artifact_key(stage, picture), description=picture.name)
    for report in sorted(folder.glob("*.md")):
        create_markdown_artifact(with_pictures(report), key=artifact_key(stage, report))


def artifact_key(stage: str, path: Path) -> str:
    """E.g. "evaluate-pr-curves"."""
    return f"{stage}-{re.sub('[^a-z0-9]+', '-', path.stem.lower())}"


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
