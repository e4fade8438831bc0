"""Batch inference with the champion or other weights, on this machine or a Ray cluster, as a flow.

Run it from the UI (`make ui`), or in a terminal:

    prefect deployment run batch-inference/batch-inference \\
        --param batch='{"images": "photos", "out": "found"}'
"""

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
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
from personlab.inference.weights import DEFAULT_NETWORK
from personlab.people import SHOWN
from personlab.registry.models import Registry
from personlab.utils.process import CommandError
from personlab.utils.storage import Folder

TRAINED = "data/infer/model.safetensors"
OVERLAYS = Path("runs/overlays")
ERRORS_SHOWN = 100
SAMPLES = 6
THRESHOLD = f"a score of at least {SHOWN:g}"


class Batch(BaseModel):
    """Images, weights, and where to write predictions."""

    model_config = ConfigDict(extra="forbid")

    images: str = Field(
        description="Folder, pattern, Parquet file or list of paths; local or s3://, gs://, ..."
    )
    out: str = Field(description="Folder or URI: empty, or of a run to resume")
    weights: str | None = Field(
        default=None,
        description="Checkpoint, or a name of 'personlab weights list'; by default the champion, else the "
        f"model of the last 'dvc repro', else {DEFAULT_NETWORK}",
    )
    sides: list[PositiveInt] = Field(
        default=[801], min_length=1, description="Longest side of the network's input; several make a pyramid"
    )
    stride: Literal[8, 16] = Field(default=16, description="8 is slower and finds more")
    device: Literal["cpu", "cuda"] = "cpu"
    ray_address: str | None = Field(default=None, description="A Ray cluster; by default this machine")

    def arguments(self, project: Path) -> tuple[str, ...]:
        """The arguments of `personlab infer-batch`; it finds the champion and the default network itself."""
        weights = self.weights
        if not weights and (project / TRAINED).is_file() and not Registry(project).champion():
            weights = TRAINED
        options = ("--out", self.out, "--stride", str(self.stride), "--device", self.device)
        scales = ("--side" if len(self.sides) == 1 else "--pyramid", *map(str, self.sides))
        return (self.images, *(("--weights", weights) if weights else ()), *options, *scales)

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
        personlab("infer-batch", *batch.arguments(project), project=project, environment=environment)
    except (CommandError, UserError) as failure:
        return Failed(message=str(failure), data=failure)
    manifest = json.loads(folder.read("manifest.json"))
    counts = {name: manifest[name] for name in ("images", "predictions", "errors", "proposals", "people")}
    with for_show("counts and errors"):
        publish(folder, counts, batch.out)
    with for_show("the samples"):
        samples = sample_pictures(batch, project)
        create_markdown_artifact(
            samples, key="batch-samples", description=f"Some of the images; people with {THRESHOLD}"
        )
    message = (
        "{images} images in = {predictions} predictions + {errors} errors; {proposals} proposals, {people} "
        f"with {THRESHOLD}"
    )
    return Completed(message=message.format(**counts), data=counts)


def publish(folder: Folder, counts: Row, name: str) -> None:
    """Publish tables of counts and of images that cannot be read. name: of the folder."""
    rows = [{"what": name, "value": value} for name, value in counts.items()]
    create_table_artifact(rows, key="batch-counts", description=f"Images and people of {name}")
    create_table_artifact(
        list(islice(errors(folder), ERRORS_SHOWN)),
        key="batch-errors",
        description=f"{counts['errors']} images that cannot be read, at most {ERRORS_SHOWN} of them listed",
    )


def errors(folder: Folder) -> Iterator[Row]:
    """The images of a run that cannot be read, in order."""
    for name in sorted(name for name in folder.files() if name.startswith("errors-")):
        with folder.open(name) as file:
            for row in pq.read_table(file).to_pylist():
                yield {"image": row["image"], "reason": row["reason"]}


def sample_pictures(batch: Batch, project: Path) -> str:
    """Some images with the predicted people, as markdown; the files stay in runs/overlays."""
    shutil.rmtree(project / OVERLAYS, ignore_errors=True)
    options = ("--run", batch.out, "--out", str(OVERLAYS), "--count", str(SAMPLES))
    personlab("overlays", batch.images, *options, project=project)
    files = sorted((project / OVERLAYS).glob("*.jpg"))
    return "\n\n".join(picture(file, PICTURE_BYTES // SAMPLES, title=file.stem) for file in files)
