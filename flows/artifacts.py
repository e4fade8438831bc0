"""Results of stages as artifacts in the Prefect UI: metrics, curves, pictures, reports.

The UI cannot read the project's files, so artifacts contain the pictures, reduced so that no artifact is
larger than a megabyte.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from personlab.errors import UserError
from personlab.report import data_uri
from personlab.report.differences import Difference, compare, flatten, shown
from personlab.utils.files import read_tsv
from personlab.utils.git import git

PICTURES: Final = {".jpg", ".png"}
PICTURE_BYTES: Final = 700_000  # base64 adds a third
PICTURE_IN_MARKDOWN: Final = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")

Row = dict[str, Any]


@contextmanager
def for_show(what: str) -> Iterator[None]:
    """Log an error in the block as a warning: results that cannot be shown fail no run."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("%s cannot be shown: %s: %s", what, type(error).__name__, error)


def publish(stage: str, project: Path) -> None:
    """Publish the results of a stage as artifacts of the running flow.

    Metrics are data/metrics/<stage>.json, curves the tables by step in data/plots/<stage>; pictures and
    reports are the files at the top of data/<stage>.
    """
    folder = project / "data" / stage
    metrics = Path("data/metrics", f"{stage}.json")
    if (project / metrics).is_file():
        publish_metrics(stage, metrics, project)
    for file in sorted((project / "data/plots" / stage).glob("*.tsv")):
        columns = read_tsv(file)
        if "step" in columns:
            rows = [
                dict(zip(columns, map(shown, row), strict=True))
                for row in zip(*columns.values(), strict=True)
            ]
            create_table_artifact(
                rows, key=artifact_key(stage, file), description=f"Curve of {stage}: {file.stem} by step"
            )
    for file in sorted(folder.glob("*")):
        key, place = artifact_key(stage, file), file.relative_to(project)
        if file.suffix in PICTURES:  # markdown, because the UI prints the whole URL below an image artifact
            markdown = picture(file, PICTURE_BYTES, title=file.name)
            create_markdown_artifact(markdown, key=key, description=f"Picture of {stage}: {place}")
        elif file.suffix == ".md":
            create_markdown_artifact(with_pictures(file), key=key, description=f"Report of {stage}: {place}")


def artifact_key(stage: str, path: Path) -> str:
    """E.g. "evaluate-pr-curves"."""
    return f"{stage}-{re.sub('[^a-z0-9]+', '-', path.stem.lower())}"


def picture(file: Path, size: int, title: str) -> str:
    """An image file as markdown that contains it, in at most `size` bytes before base64."""
    return f"![{title}]({data_uri.jpeg(file, size)})"


def publish_metrics(key: str, file: Path, project: Path) -> None:
    """Publish a table of the metrics in `file`, relative to the project, beside those of the last commit."""
    metrics = flatten(json.loads((project / file).read_bytes()))
    create_table_artifact(
        metrics_rows(compare(committed_metrics(file, project), metrics), before="last commit"),
        key=f"{key}-metrics",
        description=f"Metrics of {key}: {file.as_posix()} beside the last commit",
    )


def metrics_rows(differences: Iterable[Difference], before: str) -> list[Row]:
    """One row per metric. before: the name of the column of earlier values."""
    return [
        {"metric": each.name, "now": shown(each.now), before: shown(each.before), "change": each.change}
        for each in differences
    ]


def committed_metrics(file: Path, project: Path) -> Row:
    """The metrics of the last commit; none if it has no such file."""
    try:
        return flatten(json.loads(git(project, "show", f"HEAD:./{file.as_posix()}")))
    except UserError:
        return {}


def with_pictures(report: Path) -> str:
    """A markdown file, with the pictures it refers to inside it."""
    text = report.read_text(encoding="utf-8")
    size = PICTURE_BYTES // max(1, len(PICTURE_IN_MARKDOWN.findall(text)))

    def embed(link: re.Match[str]) -> str:
        file = report.parent / link[2]
        return picture(file, size, title=link[1]) if file.is_file() else link[0]

    return PICTURE_IN_MARKDOWN.sub(embed, text)
