"""Batch inference with the champion or other weights, on this machine or a Ray cluster, as a flow.

Run it from the UI (`make ui`), or in a terminal:

    prefect deployment run batch-inference/batch-inference \\
        --param batch='{"images": "photos", "out": "found"}'
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pyarrow.parquet as pq
from prefect import State, flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from flows.artifacts import PICTURE_BYTES, Row, for_show, picture
from flows.stages import HERE
from flows.tools import personlab
from personlab.errors import UserError
from personlab.people import SHOWN
from personlab.utils.process import CommandError
from personlab.utils.storage import Folder

CHAMPION = "models/champion/model.safetensors"
ERRORS_SHOWN = 100
SAMPLES = 6


class Batch(BaseModel):
    """Images, weights, and where to write predictions."""

    model_config = ConfigDict(extra="forbid")

    images: str = Field(
        description="Folder, pattern, Parquet file or list of paths; local or s3://, gs://, ..."
    )
    out: str = Field(description="Folder or URI: empty, or of a run to resume")
    weights: str = Field(default=CHAMPION, description="Checkpoint; by default the champion")
    sides: list[PositiveInt] = Field(
        default=[801], min_length=1, description="Longest side of the network's input; several make a pyramid"
    )
    stride: Literal[8, 16] = Field(default=16, description="8 is slower and finds more")
    device: Literal["cpu", "cuda"] = "cpu"
    ray_address: str | None = Field(default=None, description="A Ray cluster; by default this machine")

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of `personlab infer-batch`."""
        options = ("--weights", self.weights, "--out", self.out, "--stride", str(self.stride))
        scales = ("--side" if len(self.sides) == 1 else "--pyramid", *map(str, self.sides))
        return (self.images, *options, "--device", self.device, *scales)

    def folder(self, project: Path) -> Folder:
        return Folder(self.out if "://" in self.out else str(project / self.out))


@flow(persist_result=False)
def batch_inference(batch: Batch, project: Path = HERE) -> State[Row]:
    """Find people in any number of images. An interrupted run is resumed.

    Args:
        batch: images, weights, and where to write predictions.
        project: the folder that relative paths are relative to.
    """
    project = project.absolute()
    folder = batch.folder(project)
    environment = {"RAY_ADDRESS": batch.ray_address} if batch.ray_address else {}
    try:
        personlab("infer-batch", *batch.arguments, project=project, environment=environment)
    except (CommandError, UserError) as failure:
        return Failed(message=str(failure), data=failure)
    manifest = json.loads(folder.read("manifest.json"))
    counts = {name: manifest[name] for name in ("images", "predictions", "errors", "proposals", "people")}
    with for_show("counts and errors"):
        publish(folder, counts)
    with for_show("the samples"):
        samples = sample_pictures(batch, project)
        create_markdown_artifact(samples, key="batch-samples", description="some of the images")
    message = (
        "{images} images in = {predictions} predictions + {errors} errors; {proposals} proposals, {people} "
        f"with a score of at least {SHOWN:g}"
    )
    return Completed(message=message.format(**counts), data=counts)


def publish(folder: Folder, counts: Row) -> None:
    """Publish tables of counts and of images that cannot be read."""
    rows = [{"what": name, "value": value} for name, value in counts.items()]
    create_table_artifact(rows, key="batch-counts", description=folder.place)
    create_table_artifact(
        list(islice(errors(folder), ERRORS_SHOWN)),
        key="batch-errors",
        description=f"{counts['errors']} images that cannot be read (the first {ERRORS_SHOWN})",
    )


def errors(folder: Folder) -> Iterator[Row]:
    """The images of a run that cannot be read, in order."""
    for name in sorted(name for name in folder.files() if name.startswith("errors-")):
        with folder.open(name) as file:
            for row in pq.read_table(file).to_pylist():
                yield {"image": row["image"], "reason": row["reason"]}


def sample_pictures(batch: Batch, project: Path) -> str:
    """Some images with the predicted people, as markdown."""
    with TemporaryDirectory() as name:
        out = Path(name) / "overlays"
        options = ("--run", batch.out, "--out", str(out), "--count", str(SAMPLES))
        personlab("overlays", batch.images, *options, project=project)
        files = sorted(out.glob("*.jpg"))
        return "\n\n".join(picture(file, PICTURE_BYTES // SAMPLES, title=file.stem) for file in files)
