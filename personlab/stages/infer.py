"""Find people in the validation shards with Ray Data: one predictor per actor, images streamed through.

One row per image, one part per shard, in the shards' order: the same shards and weights give the same files
however many actors there were.
"""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy

from personlab import tables
from personlab.data.example import decode_jpeg
from personlab.errors import UserError
from personlab.files import atomic_folder, write_atomic
from personlab.params import Params
from personlab.predictor import Predictor
from personlab.progress import progress
from personlab.stages.cluster import connect

log = logging.getLogger("personlab")

Row = dict[str, Any]

# Reading needs a little of a processor: actors that took every last one would wait for it forever.
_ACTOR_CPUS = 0.9
_READER_CPUS = 0.1
_BATCH = 4  # images handed to an actor at a time


def run(params: Params, root: Path) -> None:
    """Write data/infer/part-*.parquet (tables.PREDICTIONS) and metrics.json.

    Raises:
        UserError: the checkpoint or a shard cannot be read, or an image was lost on the way.
    """
    shards = sorted((root.resolve() / "data/targets/val").glob("part-*.parquet"))
    sizes = [pq.read_metadata(shard).num_rows for shard in shards]
    start = time.monotonic()
    with connect():
        found = _predict(params, root.resolve() / "data/train/model.safetensors", shards)
        rows = sorted(progress(found, total=sum(sizes), label="infer"), key=lambda row: int(row["image_id"]))
    seconds = time.monotonic() - start
    if len(rows) != sum(sizes):
        raise UserError(f"infer: {sum(sizes)} images in, {len(rows)} out; run the stage again")

    counts = {"images": len(rows), "people": sum(len(row["people"]) for row in rows)}
    digest = tables.params_hash(params.infer, params.codec)
    with atomic_folder(root / "data/infer") as output:
        for number, size in enumerate(sizes):
            part = pa.Table.from_pylist(rows[:size], schema=tables.PREDICTIONS)
            tables.write_table(part, output / f"part-{number:05}.parquet", params_hash=digest)
            del rows[:size]
        write_atomic(output / "metrics.json", json.dumps(counts, indent=2) + "\n")
    log.info("infer: %d images in = %d images out, %d people", sum(sizes), *counts.values())
    log.info("infer: %.2f images/s, Ray's start included", counts["images"] / seconds)


def _predict(params: Params, weights: Path, shards: list[Path]) -> Iterator[Row]:
    """Prediction rows of every image of the shards, in no particular order."""
    images = ray.data.read_parquet(
        [str(shard) for shard in shards],
        columns=["image_id", "file_name", "height", "width", "jpeg"],
        ray_remote_args={"num_cpus": _READER_CPUS},
    )
    predicted = images.map_batches(
        _Actor,
        fn_constructor_args=(weights, params),
        batch_format="pyarrow",
        batch_size=_BATCH,
        compute=ActorPoolStrategy(min_size=1, max_size=_actors(params)),
        num_cpus=_ACTOR_CPUS,
        num_gpus=1 if params.infer.gpu else 0,
    )
    for batch in predicted.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch.to_pylist()


def _actors(params: Params) -> int:
    return max(1, int(ray.cluster_resources().get("GPU" if params.infer.gpu else "CPU", 1)))


class _Actor:
    """A predictor, loaded once per worker process."""

    def __init__(self, weights: Path, params: Params) -> None:
        self.predictor = Predictor.from_checkpoint(weights, params.infer, params.codec)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._row(row) for row in batch.to_pylist()], schema=tables.PREDICTIONS)

    def _row(self, row: Row) -> Row:
        people = self.predictor(decode_jpeg(row["jpeg"], name=row["file_name"]))
        size = {name: row[name] for name in ("image_id", "height", "width")}
        return size | {"people": [tables.detection_record(person) for person in people]}
