"""What a stage shows for itself in the Prefect UI: metrics, tables, pictures, reports.

The UI cannot read the project's files, so pictures travel inside the artifacts, made small enough that no
artifact exceeds a megabyte.
"""

import base64
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvc.api
from dvc.exceptions import DvcException
from PIL import Image
from prefect.artifacts import create_markdown_artifact, create_table_artifact

PICTURE_BYTES = 700_000  # a third more as base64
PICTURE_SIDE = 1600  # pixels
PICTURE_IN_MARKDOWN = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")

Row = dict[str, Any]


@dataclass(frozen=True)
class StageArtifacts:
    """The files of data/<stage> that the stage's flow shows; one that a run did not write is left out."""

    stage: str
    metrics: str | None = "metrics.json"
    tables: tuple[str, ...] = ()  # flat JSON objects
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
        for name in self._present(self.pictures, folder):
            # markdown, because the UI prints the whole URL below an image artifact
            picture = f"![{name}]({data_uri(folder / name, PICTURE_BYTES)})"
            create_markdown_artifact(picture, key=self._key(name), description=f"data/{self.stage}/{name}")
        for name in self._present(self.reports, folder):
            create_markdown_artifact(with_pictures(folder / name), key=self._key(name))

    def _present(self, names: tuple[str, ...], folder: Path) -> Iterator[str]:
        return (name for name in names if (folder / name).is_file())

    def _key(self, name: str) -> str:
        return f"{self.stage}-{re.sub('[^a-z0-9]+', '-', Path(name).stem.lower())}"


def publish_metrics(key: str, file: Path, project: Path) -> None:
    """A table of the metrics in `file` (relative to the project) beside those of the last commit."""
    rows = compare(read_flat(project / file), committed_metrics(file, project))
    create_table_artifact(
        rows, key=f"{key}-metrics", description=f"{file.as_posix()} against the last commit"
    )


def compare(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[Row]:
    """One row a metric; `change` only where both are numbers."""
    return [
        {
            "metric": name,
            "now": shown(now.get(name)),
            "last commit": shown(before.get(name)),
            "change": change(now.get(name), before.get(name)),
        }
        for name in {**now, **before}
    ]


def shown(value: Any) -> Any:
    return "–" if value is None else round(value, 4) if isinstance(value, float) else value


def change(now: Any, before: Any) -> str:
    if not (is_number(now) and is_number(before)):
        return "–"
    return "=" if now == before else f"{now - before:+.4g}"


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_flat(file: Path) -> dict[str, Any]:
    return flatten(json.loads(file.read_text()))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"keypoints": {"AP": 0.5}} as {"keypoints.AP": 0.5}, DVC's way of naming metrics."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


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
        return f"![{found[1]}]({data_uri(picture, budget)})" if picture.is_file() else found[0]

    return PICTURE_IN_MARKDOWN.sub(embed, text)


def data_uri(picture: Path, budget: int) -> str:
    """The picture as a JPEG of at most `budget` bytes inside a URI, smaller in pixels where it must be."""
    side = PICTURE_SIDE
    with Image.open(picture) as opened:
        pixels = opened.convert("RGB")
    while len(jpeg := encode(pixels, side)) > budget and side > 64:
        side = side * 3 // 4
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def encode(pixels: Image.Image, side: int) -> bytes:
    small = pixels.copy()
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()
