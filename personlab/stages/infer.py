"""Predict the people of the validation images, and export the model as it is served.

Prediction is a batch run (distributed/batch.py) over the image shards, whose parts are then regrouped to one
part per shard: the same shards and weights give the same files with any number of actors. The run is kept in
runs/, outside DVC's outputs, under a hash of its inputs and parameters, so that the stage can resume it after
a kill.

The exported model is the trained one, or its mean with the initial weights (`export.initial_share`), with the
decoding parameters added to its card. Prediction and promotion use it: a model is served with the decoding
that it was evaluated with.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa

from personlab import tables
from personlab.data import images
from personlab.distributed import batch
from personlab.errors import UserError
from personlab.inference.job import Job, Plan, first_error, make_plan
from personlab.inference.listing import list_images
from personlab.model import checkpoint
from personlab.model.blend import blend
from personlab.params import Params
from personlab.tables.shards import part_name
from personlab.utils.files import atomic_folder, write_json
from personlab.utils.storage import Folder

_BLEND: Final = "runs/infer-blend"
# Images of a part: few, so that all actors end at about the same time; on a GPU, several batches.
_PART_SIZE: Final = 16
_GPU_PART_SIZE: Final = 64


def run(params: Params, root: Path) -> None:
    """Write data/infer: part-*.parquet (tables.PREDICTIONS), model.safetensors and its card; and metrics.

    Raises:
        UserError: the checkpoint, a shard or an image in it cannot be read.
    """
    folder, weights = root.resolve() / "data/ingest/val", _weights(params, root.resolve())
    shards = sorted(folder.glob("part-*.parquet"))
    listing = list_images(str(folder))
    compute = params.compute
    part_size = _GPU_PART_SIZE if compute.gpu else _PART_SIZE
    plan = make_plan(listing, weights, params.infer, params.decode, part_size=part_size)
    work = root.resolve() / "runs" / f"infer-{_digest(plan, shards)}"
    decode = partial(images.decode, apply_exif=False)
    job = Job(plan, listing.root, Folder(str(work)), str(weights), decode, gpu=compute.gpu)
    gpus = compute.gpus_per_actor if compute.gpu else 0
    manifest = batch.run(job, listing, gpus_per_actor=gpus, label="infer", address=compute.ray_address)
    if manifest.errors:
        reason = first_error(job, manifest)
        shutil.rmtree(work)
        raise UserError(f"{folder}: {reason}")

    digest = tables.params_hash(params.infer, params.decode)
    with atomic_folder(root / "data/infer") as output:
        for number, part in enumerate(_by_shard(shards, [work / part_name(part) for part in plan.parts])):
            tables.write_table(part, output / part_name(number), params_hash=digest)
        shutil.copyfile(weights, output / weights.name)
        card = json.loads(weights.with_suffix(".json").read_bytes())
        write_json(output / "model.json", card | {"decode": params.decode.model_dump()})
    counts = {"images": manifest.images, "proposals": manifest.proposals, "people": manifest.people}
    write_json(root / "data/metrics/infer.json", counts)
    shutil.rmtree(work)
    if params.export.initial_share:
        shutil.rmtree(weights.parent)


def _weights(params: Params, root: Path) -> Path:
    """The trained checkpoint, or one of its mean with the initial weights, written to runs/."""
    trained, share = root / "data/train/model.safetensors", params.export.initial_share
    if not (share and params.model.init):
        return trained
    state, card = checkpoint.load(trained)
    path = root / _BLEND / trained.name
    mean = blend(root / params.model.init, state, share=share)
    checkpoint.save(path, mean, card | {"initial_share": share})
    return path


def _by_shard(shards: Iterable[Path], parts: Iterable[Path]) -> Iterator[pa.Table]:
    """The predictions of each shard, with the ids of its images."""
    source = (tables.read_table(part, tables.PREDICTIONS) for part in parts)
    held = tables.PREDICTIONS.empty_table()
    for shard in shards:
        ids = tables.read_table(shard, tables.IMAGES, ["image_id"])["image_id"]
        while len(held) < len(ids):
            held = pa.concat_tables([held, next(source)])
        part = held[: len(ids)].set_column(0, tables.PREDICTIONS.field("image_id"), ids)
        yield part.combine_chunks()  # chunks would change the bytes of the file
        held = held[len(ids) :]


def _digest(plan: Plan, shards: Sequence[Path]) -> str:
    """Hash of the plan and of the shards' contents."""
    digest = hashlib.sha256(plan.digest.encode())
    for shard in shards:
        with shard.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
