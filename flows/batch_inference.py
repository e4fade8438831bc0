"""Batch inference with the champion, or any weights, on this machine or a Ray cluster.

Run it from the UI (`make ui`), or with `prefect deployment run batch-inference/local --param batch=...`.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow.parquet as pq
from prefect import State, flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from flows.artifacts import PICTURE_BYTES, for_show
from flows.stages import HERE
from flows.tools import personlab
from personlab.errors import UserError
from personlab.report import data_uri
from personlab.utils.process import CommandError
from personlab.utils.storage import Folder

CHAMPION = "models/champion/model.safetensors"
LISTED = 100  # errors in the table; all of them are in the run's folder
SAMPLES = 6

Row = dict[str, Any]


class Batch(BaseModel):
    """What to look for people in, with what, and where to write."""

    model_config = ConfigDict(extra="forbid")

    pictures: str = Field(
        description="Folder, pattern, Parquet file or list of paths; here or s3://, gs://, ..."
    )
    out: str = Field(description="Folder or URI: empty, or that of a run to go on with")
    weights: str = Field(default=CHAMPION, description="Checkpoint; the champion unless told otherwise")
    sides: list[PositiveInt] = Field(
        default=[801], min_length=1, description="Longest side of the network's input; several make a pyramid"
    )
    stride: Literal[8, 16] = Field(default=16, description="8 is slower and finds more")
    device: Literal["cpu", "cuda"] = "cpu"
    ray_address: str | None = Field(default=None, description="A Ray cluster; this machine if there is none")

    @property
    def arguments(self) -> tuple[str, ...]:
        """Those of `personlab infer-batch`."""
        options = ("--weights", self.weights, "--out", self.out, "--stride", str(self.stride))
        scales = ("--side" if len(self.sides) == 1 else "--pyramid", *map(str, self.sides))
        return (self.pictures, *options, "--device", self.device, *scales)

    def folder(self, project: Path) -> Folder:
        return Folder(self.out if "://" in self.out else str(project / self.out))


@flow(persist_result=False)
def batch_inference(batch: Batch, project: Path = HERE) -> State[Row]:
    """Find people in any number of pictures; a run that was cut short goes on where it stopped.

    Args:
        batch: what to look for people in, with what, and where to write.
        project: the folder that relative paths are relative to.
    """
    project = project.absolute()
    folder = batch.folder(project)
    environment = {"RAY_ADDRESS": batch.ray_address} if batch.ray_address else {}
    try:
        begun = any(name.startswith("part-") for name in folder.files())
        start = time.monotonic()
        personlab("infer-batch", *batch.arguments, project=project, environment=environment)
        seconds = time.monotonic() - start
    except (CommandError, UserError) as failure:
        return Failed(message=str(failure), data=failure)
    manifest = json.loads(folder.read("manifest.json"))
    counts = {name: manifest[name] for name in ("images", "predictions", "errors", "people")}
    # of a run that went on, only some of the images were looked at now
    rate = {} if begun else throughput(counts["images"], seconds)
    with for_show("counts and errors"):
        publish(folder, counts | rate)
    with for_show("the pictures"):
        samples = sample_pictures(batch, project)
        create_markdown_artifact(samples, key="batch-samples", description="some of the pictures")
    said = "{images} images in = {predictions} predictions + {errors} errors; {people} people"
    return Completed(message=said.format(**counts), data=counts)


def throughput(images: int, seconds: float) -> Row:
    return {"seconds": round(seconds, 1), "images per second": round(images / seconds, 2)}


def publish(folder: Folder, counts: Row) -> None:
    rows = [{"what": name, "value": value} for name, value in counts.items()]
    create_table_artifact(rows, key="batch-counts", description=f"{folder.place}, Ray's start included")
    create_table_artifact(
        [row for row, _ in zip(errors(folder), range(LISTED), strict=False)],
        key="batch-errors",
        description=f"pictures that cannot be read: {counts['errors']}, the first {LISTED} of them here",
    )


def errors(folder: Folder) -> Iterator[Row]:
    """What is written of pictures that cannot be read, in order."""
    for name in sorted(name for name in folder.files() if name.startswith("errors-")):
        with folder.open(name) as file:
            for row in pq.read_table(file).to_pylist():
                yield {"picture": row["image"], "reason": row["reason"]}


def sample_pictures(batch: Batch, project: Path) -> str:
    """Some pictures with the people found in them, as markdown."""
    with TemporaryDirectory() as name:
        out = Path(name) / "overlays"
        options = ("--run", batch.out, "--out", str(out), "--count", str(SAMPLES))
        personlab("overlays", batch.pictures, *options, project=project)
        return "\n\n".join(
            f"![{file.stem}]({data_uri.jpeg(file, PICTURE_BYTES // SAMPLES)})"
            for file in sorted(out.glob("*.jpg"))
        )
