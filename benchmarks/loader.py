"""How fast training examples are made, on one CPU and on two, and whether training waits for them.

    python -m benchmarks.loader [--coco FOLDER] [--crop 801] [--batches 25] [--rounds 3] [--json FILE]

Photos of a COCO folder (../shared/data/coco-mini; the rendered sample if there is none) are put into shards
by the pipeline. An example is a decoded JPEG, cropped at random as in the paper, with its five fields
rasterised, in batches of 8 at stride 16, R = 32. Two ways, alternately, each in its own process on one or
two CPUs:

- loader: personlab.data.loader, as in the stage `train`: as many threads as CPUs decode and crop, another one
  rasterises, and another one reads the shards;
- DataLoader: PyTorch's, with as many worker processes as CPUs, from rows that are in memory already.

Both prefetch and are timed from their first batch on. Rates depend on the load of the machine, CPU time less
so. Then the pieces, one after the other in one thread, with the bytes of their results. Then training steps
of params.yaml's network on the same CPUs: with batches prepared before, prepared during the steps, and
prepared between them, as `train` does without a GPU; and with prepared ones if freed memory is returned to
the system (personlab/utils/malloc.py). At the end `train` itself runs for a few steps with params.yaml's
network and reports the share of the time that it waits: at this crop size, and at params.yaml's.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from benchmarks import trial
from personlab import params
from personlab.codec.encode import encode
from personlab.codec.fields import stack
from personlab.data.augment import augmented, random_transform
from personlab.data.example import Example, project_people
from personlab.data.images import pixels
from personlab.data.loader import load_batches
from personlab.model.losses import Objective
from personlab.model.network import build
from personlab.params import Train
from personlab.people import Annotation
from personlab.skeleton import COCO_PERSON
from personlab.tables.shards import row_groups, with_people
from personlab.training import engine
from personlab.training.batches import collate
from personlab.training.engine import Batch
from personlab.utils import malloc
from personlab.utils.prefetch import prefetch

T = TypeVar("T")

RADIUS = 32.0
_TRIMMED = "ready, freed memory returned"


@dataclass(frozen=True)
class Pace:
    """One round of one way; images/s from its first batch on."""

    images_per_s: float
    processor_ms: float  # an image, of all processes, the first batch included


@dataclass(frozen=True)
class Rate:
    """One way to load, on so many processors: medians of the rounds."""

    way: str
    processors: int
    images_per_s: float
    processor_ms: float  # an image, of all processes
    rounds: list[float]  # images/s of each


@dataclass(frozen=True)
class Piece:
    """The time of one image in one thread, and the size of the result."""

    name: str
    milliseconds: float
    kilobytes: float


def main() -> None:
    options = _options()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        what = trial.project(Path(folder), options.coco)
        data = Path(folder) / "data"
        train = Train(crop=options.crop, steps=options.batches + 1)
        rates = measure(data, train, options.rounds)
        found = _alone(1, pieces, data, train)
        console.print(rates_table(rates, f"{what}, {options.crop} px, {os.cpu_count()} processors"))
        console.print(pieces_table(found))
        console.print(steps_table(steps(data, options.rounds)))
        for crop in (options.crop, None):
            setting = f"crop {crop}" if crop else "params.yaml's settings"
            console.print(f"train, {setting}: {waiting(Path(folder), crop)}")
    if options.json:
        content = {"rates": [asdict(rate) for rate in rates], "pieces": [asdict(piece) for piece in found]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


# --- rates --------------------------------------------------------------------------------------------------


def measure(data: Path, train: Train, rounds: int) -> list[Rate]:
    """Every way on every number of CPUs, `rounds` times, alternately."""
    ways: dict[str, Callable[[Path, Train, int], Pace]] = {"loader": by_loader, "DataLoader": by_data_loader}
    seen = defaultdict[tuple[str, int], list[Pace]](list)
    for _ in range(rounds):
        for processors in range(1, min(2, os.cpu_count() or 1) + 1):
            for name, way in ways.items():
                seen[name, processors].append(_alone(processors, way, data, train, processors))
    return [_rate(*key, paces) for key, paces in sorted(seen.items(), reverse=True)]


def _rate(way: str, processors: int, paces: list[Pace]) -> Rate:
    rounds = [pace.images_per_s for pace in paces]
    used = statistics.median(pace.processor_ms for pace in paces)
    return Rate(way, processors, statistics.median(rounds), used, rounds)


def _alone(processors: int, work: Callable[..., T], *args: Any) -> T:
    """The result of a function in a process that may use so many processors."""
    with ProcessPoolExecutor(1, get_context("spawn"), _confine, (processors,)) as pool:
        return pool.submit(work, *args).result()


def _confine(processors: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:processors])
    torch.set_num_threads(1)


def by_loader(data: Path, train: Train, threads: int) -> Pace:
    """The loader of the stage `train`, on CPUs alone."""
    examples = _examples(data, train, threads=threads, overlap=True)
    return _pace(prefetch(lambda each: _batch(each, train), examples, threads=1, depth=2))


def _examples(data: Path, train: Train, *, threads: int, overlap: bool) -> Iterator[list[Example]]:
    images, targets = data / "ingest/train", data / "targets/train"
    return load_batches(
        images,
        targets,
        train,
        rank=0,
        workers=1,
        done=0,
        threads=threads,
        overlap=overlap,
        skeleton=COCO_PERSON,
    )


def by_data_loader(data: Path, train: Train, processes: int) -> Pace:
    """PyTorch's DataLoader."""
    rows = [row for group in _groups(data) for row in group.to_pylist()]
    loader = DataLoader(
        _Examples(rows, train),
        batch_size=train.batch,
        num_workers=processes,
        collate_fn=_collated,
        worker_init_fn=_single_threaded,
    )
    return _pace(loader)


class _Examples(Dataset[tuple[Example, Any]]):
    """Epochs of rows, augmented as in training, with their fields."""

    def __init__(self, rows: list[dict[str, Any]], train: Train) -> None:
        self.rows, self.train = rows, train

    def __len__(self) -> int:
        return self.train.steps * self.train.batch

    def __getitem__(self, index: int) -> tuple[Example, Any]:
        epoch, row = divmod(index, len(self.rows))
        example = augmented(self.rows[row], self.train, epoch=epoch, skeleton=COCO_PERSON)
        return example, encode(example.people, stride=self.train.stride, radius=RADIUS, skeleton=COCO_PERSON)


def _single_threaded(_: int) -> None:
    torch.set_num_threads(1)


def _collated(pairs: list[tuple[Example, Any]]) -> Batch:
    examples, targets = zip(*pairs, strict=True)
    return Batch(
        torch.stack([each.image for each in examples]),
        stack(list(targets)),
        [each.image_id for each in examples],
    )


def _batch(examples: list[Example], train: Train) -> Batch:
    return _collated(
        [(e, encode(e.people, stride=train.stride, radius=RADIUS, skeleton=COCO_PERSON)) for e in examples]
    )


def _pace(batches: Iterable[Batch]) -> Pace:
    before = _processor_seconds()
    each = iter(batches)
    first = next(each)
    start = time.perf_counter()
    images = sum(len(batch.images) for batch in each)
    seconds = time.perf_counter() - start
    del each  # processes count when they have ended
    used = _processor_seconds() - before
    return Pace(images / seconds, 1e3 * used / (images + len(first.images)))


def _processor_seconds() -> float:
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in (own, others))


def _groups(data: Path) -> Iterator[pa.Table]:
    """The row groups of the training images with their people."""
    for group in row_groups(data / "ingest/train"):
        yield with_people(group, data / "targets/train")


# --- pieces -------------------------------------------------------------------------------------------------


def pieces(data: Path, train: Train) -> list[Piece]:
    """Mean CPU milliseconds and kilobytes of an image, for every step from the shard to the batch."""
    taken = defaultdict[str, list[float]](list)
    held = defaultdict[str, list[int]](list)

    def timed(name: str, work: Callable[[], T], size: Callable[[T], int]) -> T:
        start = time.process_time()
        result = work()
        taken[name].append(1e3 * (time.process_time() - start))
        held[name].append(size(result))
        return result

    start = time.process_time()
    for group in _groups(data):
        rows = group.to_pylist()
        taken["read"] += [1e3 * (time.process_time() - start) / len(rows)] * len(rows)
        held["read"] += [len(row["image"]) for row in rows]
        for row in rows:
            _walk(row, train, timed)
        start = time.process_time()
    return [Piece(name, statistics.mean(taken[name]), statistics.mean(held[name]) / 1e3) for name in taken]


def _walk(row: dict[str, Any], train: Train, timed: Callable[..., Any]) -> None:
    rng = np.random.default_rng(row["image_id"])
    height, width = row["height"], row["width"]
    scales = train.min_scale, train.max_scale
    transform = random_transform(rng, height=height, width=width, crop=train.crop, scales=scales)
    image = timed("decode JPEG", lambda: pixels(row), _size)
    timed("draw crop", lambda: transform.image(image), _size)
    annotated = [Annotation.from_row(record) for record in row["people"]]
    people = timed(
        "people and masks",
        lambda: project_people(
            annotated, transform, height=height, width=width, stride=train.stride, skeleton=COCO_PERSON
        ),
        lambda found: sum(t.nbytes for t in (found.keypoints, found.labelled, found.masks, found.crowd)),
    )
    timed(
        "rasterise", lambda: encode(people, stride=train.stride, radius=RADIUS, skeleton=COCO_PERSON), _bytes
    )


def _size(array: np.ndarray[Any, Any]) -> int:
    return array.nbytes


def _bytes(held: Any) -> int:
    """Bytes of all tensors in nested dataclasses."""
    if isinstance(held, torch.Tensor):
        return held.nbytes
    return sum(_bytes(value) for value in vars(held).values()) if hasattr(held, "__dataclass_fields__") else 0


# --- steps on the same processors ---------------------------------------------------------------------------


def steps(data: Path, rounds: int) -> dict[str, list[float]]:
    """Steps/s with each way to prepare batches in each round, each in its own process, alternately."""
    found: dict[str, list[float]] = {"ready": [], "during": [], "between": [], _TRIMMED: []}
    for _ in range(rounds):
        for way, rates in found.items():
            rates.append(_alone(os.cpu_count() or 1, _steps, data, way))
    return found


def _steps(data: Path, way: str, *, warm: int = 5, timed: int = 40) -> float:
    settings = params.load(trial.ROOT / "params.yaml")
    train = settings.train.model_copy(update={"steps": warm + timed})
    threads = os.cpu_count() or 1
    if way != _TRIMMED:
        malloc.disable_trim()
    torch.set_num_threads(threads)
    network = build(settings.model, stride=train.stride, skeleton=COCO_PERSON).train()
    supervised = engine.Supervised(network, Objective.of(settings.model, train, skeleton=COCO_PERSON))
    optimizer = engine.optimizer(network, train)
    during = way == "during"
    examples = _examples(data, train, threads=max(1, threads - during), overlap=during)
    make = partial(collate, network=network, device=torch.device("cpu"))
    batches: Iterable[Batch] = map(make, examples)
    if during:
        batches = prefetch(make, examples, threads=1, depth=2)
    elif way in ("ready", _TRIMMED):
        batches = list(batches)
    start = 0.0
    for step, batch in enumerate(batches):
        if step == warm:
            start = time.perf_counter()
        engine.train_step(supervised, batch, optimizer, precision=train.precision)
    return timed / (time.perf_counter() - start)


# --- training -----------------------------------------------------------------------------------------------


def waiting(folder: Path, crop: int | None) -> str:
    """The throughput that the stage `train` logs after a few steps. crop: with the paper's augmentation."""
    ours = yaml.safe_load((trial.ROOT / "params.yaml").read_text())
    own = yaml.safe_load((folder / "params.yaml").read_text())
    if crop:
        changes = {"crop": crop, "person_sizes": None, "batch": 2, "steps": 30, "min_scale": 0.5}
        own["train"] = ours["train"] | changes | {"max_scale": 1.5}
    else:
        own["train"] = ours["train"] | {"steps": 300}
    (folder / "params.yaml").write_text(yaml.safe_dump(own))
    lines = trial.run(folder, "train").splitlines()
    return next(line.partition("train: ")[2] for line in lines if "waiting for data" in line)


# --- showing ------------------------------------------------------------------------------------------------


def rates_table(rates: list[Rate], title: str) -> Table:
    """A row for each way, with its gain from the second processor."""
    shown = Table("way", "processors", "images/s", "of one", "processor ms", "rounds", title=title)
    one = {rate.way: rate.images_per_s for rate in rates if rate.processors == 1}
    for rate in sorted(rates, key=lambda rate: (rate.way, rate.processors)):
        rounds = ", ".join(f"{each:.1f}" for each in rate.rounds)
        gain = f"{rate.images_per_s / one[rate.way]:.2f}x"
        shown.add_row(
            rate.way,
            str(rate.processors),
            f"{rate.images_per_s:.1f}",
            gain,
            f"{rate.processor_ms:.0f}",
            rounds,
        )
    return shown


def pieces_table(found: list[Piece]) -> Table:
    """A row for each piece, and their sum."""
    shown = Table("piece", "processor ms an image", "kB an image")
    for piece in found:
        shown.add_row(piece.name, f"{piece.milliseconds:.2f}", f"{piece.kilobytes:.1f}")
    shown.add_section()
    shown.add_row("sum", f"{sum(piece.milliseconds for piece in found):.2f}", "")
    return shown


def steps_table(found: dict[str, list[float]]) -> Table:
    """A row for each way to prepare batches, with its share of the rate of ready ones."""
    shown = Table("batches", "steps/s: median", "of ready ones", "rounds", title="steps on processors")
    best = statistics.median(found["ready"])
    for way, rates in found.items():
        median = statistics.median(rates)
        rounds = ", ".join(f"{rate:.2f}" for rate in rates)
        shown.add_row(way, f"{median:.2f}", f"{median / best:.0%}", rounds)
    return shown


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description="Measure data loading.")
    parser.add_argument("--coco", type=Path, default=trial.COCO_MINI, metavar="FOLDER")
    parser.add_argument("--crop", type=int, default=801, metavar="N")
    parser.add_argument("--batches", type=int, default=25, metavar="N", help="of 8, that are timed")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
