"""Batch inference on a Ray cluster: a pool of actors makes the parts of a run (personlab/inference/job.py).

The driver holds no images and no people, only a line for each part, and an actor the results of one part:
memory does not grow with the number of images.
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

from personlab.distributed.cluster import connect, require
from personlab.errors import UserError
from personlab.inference import job as batch
from personlab.inference.job import Job, Manifest, Part, Worker
from personlab.inference.listing import Listing
from personlab.inference.poison_images import RECORD
from personlab.tables.shards import part_name
from personlab.utils import malloc
from personlab.utils.progress import progress

log = logging.getLogger("personlab")

Row = dict[str, Any]

_RETRIES = 8  # of a part whose process or node died; an image that kills is given up after three


def run(job: Job, listing: Listing, *, label: str = "infer-batch", address: str | None = None) -> Manifest:
    """Do what is not yet done of a run: write its parts, and manifest.json when all are there.

    address: of a Ray cluster, as for `connect`.

    Raises:
        UserError: the folder holds another run, or something else; another run is writing to it; it cannot
            be written to; a part failed again and again.
    """
    plan, out = job.plan, job.out
    out.create()
    with out.locked():
        batch.settle(job, listing)
        files = batch.sweep(out, RECORD)
        begun = [number for number in plan.parts if part_name(number) in files]
        manifest = batch.manifest_of(job)
        if manifest and len(begun) == len(plan.parts):
            log.info("%s: %s is complete", label, out.place)
            return manifest
        start = time.monotonic()
        with connect(address):
            parts = {part.number: part for part in _kept(job, begun, label)}
            if parts:
                log.info("%s: going on, %d of %d parts are done", label, len(parts), len(plan.parts))
            missing = [number for number in plan.parts if number not in parts]
            total = sum(len(plan.ids(number)) for number in missing)

            def images() -> Iterator[int]:
                for part in _made(job, missing):
                    parts[part.number] = part
                    yield from plan.ids(part.number)

            for _ in progress(images(), total=plan.images, begun=plan.images - total, label=label):
                pass
        seconds = time.monotonic() - start
        manifest = batch.finish(job, [parts[number] for number in sorted(parts)])
    log.info(
        "%s: %d images in = %d predictions + %d errors, %d people; %.2f images/s, Ray's start included",
        *(label, manifest.images, manifest.predictions, manifest.errors, manifest.people, total / seconds),
    )
    return manifest


def _kept(job: Job, numbers: Sequence[int], label: str) -> Iterator[Part]:
    """Those of the parts that are finished."""
    if not numbers:
        return
    done = _units(numbers).map(partial(_check, job, Path.cwd()), num_cpus=1)
    for row in progress(done.iter_rows(), total=len(numbers), label=f"{label}: parts checked"):
        if row["part"]:
            yield Part.model_validate_json(row["part"])


def _check(job: Job, here: Path, row: Row) -> Row:
    _go(here)
    part = batch.finished(job, row["number"])
    return {"part": part.model_dump_json() if part else ""}


def _made(job: Job, numbers: Sequence[int]) -> Iterator[Part]:
    """The parts, made anew, as they are finished."""
    if not numbers:
        return
    gpu = job.gpu
    require(1, cpus=1, gpus=int(gpu), mend="compute without GPU")
    devices = int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1))
    actors = max(1, min(devices, len(numbers)))
    with warnings.catch_warnings():
        # Ray will drop this way to say it, and has no other yet. Without a limit, what kills its process
        # every time is tried for ever.
        warnings.simplefilter("ignore")
        made = _units(numbers).map(
            _Actor,
            fn_constructor_args=(job, Path.cwd()),
            compute=ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
            num_cpus=1,
            num_gpus=int(gpu),
            max_task_retries=_RETRIES,
        )
    try:
        for row in made.iter_rows():
            if row["failure"]:
                raise UserError(row["failure"])
            yield Part.model_validate_json(row["part"])
    except RayError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{job.out.place}: not finished: {reason}; the same command goes on") from error


def _units(numbers: Sequence[int]) -> ray.data.Dataset:
    """Parts to be done, each a block of its own, so that each is a task of its own."""
    return ray.data.from_items([{"number": n} for n in numbers], override_num_blocks=len(numbers))


def _go(here: Path) -> None:
    """Let relative paths mean what they mean to the driver: a cluster's processes were started elsewhere."""
    with suppress(OSError):  # nodes that do not have the folder can do without it, where no path is relative
        os.chdir(here)


class _Actor:
    """A worker whose UserErrors reach the driver as values, without Ray's wrapping."""

    def __init__(self, job: Job, here: Path) -> None:
        _go(here)
        malloc.disable_trim()
        try:
            self.worker: Worker | UserError = Worker(job)
        except UserError as error:
            self.worker = error

    def __call__(self, row: Row) -> Row:
        try:
            if isinstance(self.worker, UserError):
                raise self.worker
            return {"part": self.worker.make(row["number"]).model_dump_json(), "failure": ""}
        except UserError as error:
            return {"part": "", "failure": str(error)}
