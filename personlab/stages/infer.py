"""Find people in the validation shards: a batch run over their rows, put into one part for each shard.

The same shards and weights give the same files however many actors there were. The batch run is kept in
runs/, outside DVC's outputs, under a name derived from all that decides it: started again after a kill, the
stage goes on.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from personlab import tables
from personlab.data.example import decode_jpeg
from personlab.data.transform import ImageArray
from personlab.distributed import batch
from personlab.errors import UserError
from personlab.inference import inputs
from personlab.inference.job import Job, Plan, make_plan, part_name
from personlab.params import Params
from personlab.utils.files import atomic_folder, write_atomic
from personlab.utils.storage import Folder

_PART = 16  # images: few, so that all actors end at about the same time


def run(params: Params, root: Path) -> None:
    """Write data/infer/part-*.parquet (tables.PREDICTIONS) and metrics.json.

    Raises:
        UserError: the checkpoint, a shard or an image in it cannot be read.
    """
    folder, weights = root.resolve() / "data/targets/val", root.resolve() / "data/train/model.safetensors"
    shards = sorted(folder.glob("part-*.parquet"))
    listing = inputs.find(str(folder))
    plan = make_plan(listing, weights, params.infer, part_size=_PART, codec=params.codec)
    work = root.resolve() / "runs" / f"infer-{_digest(plan, shards)}"
    job = Job(plan, listing.root, Folder(str(work)), weights, _decode)
    found = batch.run(job, listing, label="infer", address=params.ray.address)
    if found.errors:
        reason = _first_error(work)
        shutil.rmtree(work)
        raise UserError(f"{folder}: {reason}")

    digest = tables.params_hash(params.infer, params.codec)
    with atomic_folder(root / "data/infer") as output:
        for number, part in enumerate(_by_shard(shards, [work / part_name(part) for part in plan.parts])):
            tables.write_table(part, output / part_name(number), params_hash=digest)
        counts = {"images": found.images, "people": found.people}
        write_atomic(output / "metrics.json", json.dumps(counts, indent=2) + "\n")
    shutil.rmtree(work)


def _decode(jpeg: bytes) -> ImageArray:
    return decode_jpeg(jpeg, name="image")


def _first_error(work: Path) -> str:
    failed = tables.read_table(min(work.glob("errors-*.parquet")), tables.FAILURES).to_pylist()[0]
    return f"{failed['image']}: {failed['reason']}"


def _by_shard(shards: Iterable[Path], parts: Iterable[Path]) -> Iterator[pa.Table]:
    """The predictions of each shard, under its images' ids."""
    source = (tables.read_table(part, tables.PREDICTIONS) for part in parts)
    held = tables.PREDICTIONS.empty_table()
    for shard in shards:
        ids = tables.read_table(shard, tables.SHARD, ["image_id"])["image_id"]
        while len(held) < len(ids):
            held = pa.concat_tables([held, next(source)])
        part = held[: len(ids)].set_column(0, tables.PREDICTIONS.field("image_id"), ids)
        yield part.combine_chunks()  # or the bytes of the file would show where its pieces met
        held = held[len(ids) :]


def _digest(plan: Plan, shards: Sequence[Path]) -> str:
    """Names a run; unlike the plan it knows the shards' contents."""
    digest = hashlib.sha256(plan.digest.encode())
    for shard in shards:
        with shard.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
