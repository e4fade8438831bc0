"""Helpers for tests of batch inference: a tiny random network, tiny images, and checks of a run's files."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from personlab.data import images
from personlab.inference.job import (
    INPUTS,
    MANIFEST,
    PLAN,
    DecodeImage,
    Job,
    Manifest,
    Part,
    make_plan,
    write_manifest,
    write_plan,
)
from personlab.inference.listing import Listing, list_images
from personlab.inference.worker import Worker
from personlab.model import checkpoint
from personlab.model.network import build
from personlab.params import Decode, Infer, Model
from personlab.skeleton import COCO_PERSON
from personlab.utils.storage import Folder

INFER = Infer(sides=(65,), stride=16)
DECODE = Decode.scaled(12).model_copy(update={"max_people": 2})  # the default of these weights


def save_weights(path: Path, seed: int = 0) -> Path:
    """A random network of width 8 and its card."""
    torch.manual_seed(seed)
    network = build(Model(backbone="resnet18", width=8, radius=12), stride=16, skeleton=COCO_PERSON)
    checkpoint.save(path, network.state_dict(), network.card({}))
    return path


def save_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """000.png, 001.png, ... of noise, 48 x 36 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (count, 36, 48, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def spoil(path: Path, how: int) -> None:
    """Make an image unreadable, in one of three ways."""
    if how % 3 == 0:
        path.write_bytes(path.read_bytes()[:200])  # broken off
    elif how % 3 == 1:
        path.write_text("nothing but text")
    else:
        path.write_bytes(b"")


def job(
    wanted: Path | str,
    weights: Path,
    out: Path | str,
    *,
    part_size: int = 4,
    infer: Infer = INFER,
    decode: Decode = DECODE,
    read: DecodeImage = images.decode,
) -> tuple[Job, Listing]:
    listing = list_images(str(wanted))
    plan = make_plan(listing, weights, infer, decode, part_size=part_size)
    return Job(plan, listing.root, Folder(str(out)), str(weights), read), listing


def begin(given: tuple[Job, Listing]) -> Worker:
    """Write the plan of a run; its worker."""
    made, listing = given
    made.out.create()
    write_plan(made, listing)
    return Worker(made)


def make_all(worker: Worker) -> list[Part]:
    """Make all parts one after the other, without Ray, and the manifest."""
    parts = [worker.make_part(number) for number in worker.job.plan.parts]
    write_manifest(worker.job, parts)
    return parts


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file that a run leaves."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir())
        if path.name != ".lock"
    }


def check_truth(out: Path) -> Manifest:
    """Check that the manifest describes the files, and that there are no others."""
    manifest = Manifest.model_validate_json((out / MANIFEST).read_text())
    assert manifest.images == manifest.predictions + manifest.errors
    assert [part.number for part in manifest.parts] == list(range(len(manifest.parts)))
    stated = {
        f"{kind}-{part.number:05}.parquet": sha256
        for part in manifest.parts
        for kind, sha256 in zip(("part", "errors"), part.sha256, strict=False)
    }
    found = digests(out)
    assert {name: found.pop(name, None) for name in stated} == stated
    assert set(found) == {PLAN, INPUTS, MANIFEST}
    return manifest
