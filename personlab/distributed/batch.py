"""Batch inference on a Ray cluster: a pool of actors makes the parts of a run (inference/worker.py).

The driver holds one line for each part and an actor the results of one part, so memory does not grow with the
number of images.
"""

import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from personlab.distributed.cluster import connect, require, room
from personlab.errors import UserError
from personlab.inference import job as batch
from personlab.inference.job import Job, Manifest, Part
from personlab.inference.listing import Listing
from personlab.inference.poison_images import RECORD
from personlab.inference.worker import Worker
from personlab.people import SHOWN
from personlab.tables.shards import part_name
from personlab.utils import malloc
from personlab.utils.progress import progress
from personlab.utils.storage import writing

log = logging.getLogger("personlab")

Row = dict[str, Any]

_RETRIES = 8  # of a part whose process or node died; an image that kills its process is given up sooner


def run(
    job: Job,
    listing: Listing,
    *,
    gpus_per_actor: float = 0,
    label: str = "infer-batch",
    address: str | None = None,
) -> Manifest:
    """Start or resume a run: write its missing parts, then manifest.json.

    Args:
        gpus_per_actor: that Ray reserves; 0.5 puts two actors on a GPU. `job.gpu` decides whether they are
            used.
        address: of a Ray cluster, as for `connect`.

    Raises:
        UserError: the folder holds another run or other files, is locked by another process, or cannot be
            written to; a part failed in every attempt.
    """
    plan, out = job.plan, job.out
    with writing(out.place):
        batch.check_folder(job)  # before anything is written there
    out.create()
    with out.locked():
        batch.write_plan(job, listing)
        files = batch.delete_temporary(out, RECORD)
        written = [number for number in plan.parts if part_name(number) in files]
        manifest = batch.read_manifest(job)
        if manifest and len(written) == len(plan.parts):
            log.info("%s: %s is complete: %s", label, out.place, _counts(manifest))
            _warn_of_errors(job, manifest, label)
            return manifest
        start = time.monotonic()
        with connect(address):
            parts = {part.number: part for part in _read_parts(job, written, label)}
            if parts:
                log.info("%s: resuming, %d of %d parts are done", label, len(parts), len(plan.parts))
            missing = [number for number in plan.parts if number not in parts]
            total = sum(len(plan.ids(number)) for number in missing)

            def images() -> Iterator[int]:
                for part in _make_parts(job, missing, gpus_per_actor):
                    parts[part.number] = part
                    yield from plan.ids(part.number)

            for _ in progress(images(), total=plan.images, begun=plan.images - total, label=label):
                pass
        seconds = time.monotonic() - start
        manifest = batch.write_manifest(job, [parts[number] for number in sorted(parts)])
    log.info("%s: %s; %.2f images/s, Ray's start included", label, _counts(manifest), total / seconds)
    _warn_of_errors(job, manifest, label)
    return manifest


def _counts(manifest: Manifest) -> str:
    return (
        f"{manifest.images} images in = {manifest.predictions} predictions + {manifest.errors} errors; "
        f"{manifest.proposals} proposals, {manifest.people} with a score of at least {SHOWN:g}"
    )


def _warn_of_errors(job: Job, manifest: Manifest, label: str) -> None:
    if manifest.errors:
        log.warning(
            "%s: %d images could not be read, see errors-*.parquet; the first: %s",
            *(label, manifest.errors, batch.first_error(job, manifest)),
        )


def _read_parts(job: Job, numbers: Sequence[int], label: str) -> Iterator[Part]:
    """The parts whose files are complete."""
    if not numbers:
        return
    rows = _one_block_each(numbers).map(partial(_read_part, job, Path.cwd()), num_cpus=1)
    for row in progress(rows.iter_rows(), total=len(numbers), label=f"{label}: parts checked"):
        if row["part"]:
            yield Part.model_validate_json(row["part"])


def _read_part(job: Job, folder: Path, row: Row) -> Row:
    _change_folder(folder)
    part = batch.read_part(job, row["number"])
    return {"part": part.model_dump_json() if part else ""}


def _make_parts(job: Job, numbers: Sequence[int], gpus: float) -> Iterator[Part]:
    """Make parts, in the order in which they finish; on all nodes, including those that join later."""
    if not numbers:
        return
    require(1, cpus=1, gpus=gpus, hint="compute without GPU")
    parts = len(numbers)
    actors = min(room(cpus=1, gpus=gpus), parts)  # to begin with; Ray Data adds more when nodes have room
    with warnings.catch_warnings():
        # Ray deprecates options such as max_task_retries here, without a replacement. Its default is to retry
        # for ever, also a part whose image kills its process every time.
        warnings.simplefilter("ignore")
        rows = _one_block_each(numbers).map(
            _Actor,
            fn_constructor_args=(job, Path.cwd(), gpus or 1.0),
            compute=ActorPoolStrategy(min_size=1, max_size=parts, initial_size=actors),
            num_cpus=1,
            num_gpus=gpus,
            max_task_retries=_RETRIES,
        )
    try:
        for row in rows.iter_rows():
            if row["failure"]:
                raise UserError(row["failure"])
            yield Part.model_validate_json(row["part"])
    except RayError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{job.out.place}: not finished: {reason}; run the same command to resume") from error


def _one_block_each(numbers: Sequence[int]) -> ray.data.Dataset:
    """Numbers of parts, each in its own block, so that each is its own task."""
    return ray.data.from_items([{"number": n} for n in numbers], override_num_blocks=len(numbers))


def _change_folder(folder: Path) -> None:
    """Change to the driver's folder, so that relative paths work in the processes of a cluster."""
    with suppress(OSError):  # a node may lack the folder; absolute paths work without it
        os.chdir(folder)


class _Actor:
    """A `Worker` that returns UserErrors as values: Ray would wrap them in its own exceptions."""

    def __init__(self, job: Job, folder: Path, gpu_share: float) -> None:
        _change_folder(folder)
        malloc.disable_trim()
        try:
            self.worker: Worker | UserError = Worker(job, gpu_share)
        except UserError as error:
            self.worker = error

    def __call__(self, row: Row) -> Row:
        try:
            if isinstance(self.worker, UserError):
                raise self.worker
            return {"part": self.worker.make_part(row["number"]).model_dump_json(), "failure": ""}
        except UserError as error:
            return {"part": "", "failure": str(error)}
