"""Overhead of Ray in batch inference: images a second against plain loops and `predict`, and memory.

    python -m benchmarks.batch [--images 1000 10000] [--part-size 64] [--rounds 1] [--json FILE]

Small images of noise and a random network of width 8, so that nearly all of the time is overhead. For each
number of images, alternately: `personlab infer-batch` with an actor on each CPU, as many plain processes that
make the same parts with the same code without Ray, and `personlab predict`, which also draws every image.
Rates are from the times at which parts (of `predict`: pictures) were finished, without the first ones
(start-up); "whole" is everything, from the start of Python. CPU time is that of all processes together.
Memory is each process's own peak (VmHWM), read every second.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from personlab.data import images
from personlab.inference import job as batch
from personlab.inference.job import Job, make_plan
from personlab.inference.listing import Listing, list_images
from personlab.inference.worker import Worker
from personlab.model import checkpoint
from personlab.model.network import build
from personlab.params import Infer, Model
from personlab.skeleton import COCO_PERSON
from personlab.utils.storage import Folder

_INFER, _MAX_PEOPLE = Infer(sides=(65,), stride=16), 2
_SECOND = 1.0
_WAYS = ("plain", "predict", "Ray")


@dataclass(frozen=True)
class Process:
    role: str  # driver, actor, or Ray's own
    peak_mb: float
    cpu_seconds: float


@dataclass(frozen=True)
class Run:
    """One way through all images."""

    how: str
    images: int
    whole_seconds: float
    rate: float  # images a second after start-up
    cpu_ms: float  # an image, of all processes
    driver_mb: float
    worker_mb: float  # of the largest
    others_mb: float  # sum of Ray's own processes


def main() -> None:
    options = _options()
    runs = list[Run]()
    with tempfile.TemporaryDirectory() as folder:
        weights = _weights(Path(folder) / "w.safetensors")
        for count in options.images:
            pictures = _pictures(Path(folder) / f"in-{count}", count)
            for turn in range(options.rounds):
                for how in _WAYS:
                    out = Path(folder) / f"{how}-{count}-{turn}"
                    runs.append(_measured(how, count, _command(how, pictures, weights, out, options), out))
                    print(runs[-1], file=sys.stderr)
    Console().print(table(runs))
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")


def _weights(path: Path) -> Path:
    torch.manual_seed(0)
    network = build(Model(backbone="resnet18", width=8, radius=12), stride=16, skeleton=COCO_PERSON)
    checkpoint.save(path, network.state_dict(), network.card({}))
    return path


def _pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in track(range(count), f"making {count} pictures", transient=True):
        noise = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:06}.jpg", quality=90)
    return folder


def _command(how: str, pictures: Path, weights: Path, out: Path, options: argparse.Namespace) -> list[str]:
    size = str(options.part_size)
    if how == "plain":
        own = [sys.executable, "-m", "benchmarks.batch", "--plain", str(pictures), str(weights), str(out)]
        return [*own, "--part-size", size]
    particular = (
        ["predict", "--format", "parquet"] if how == "predict" else ["infer-batch", "--part-size", size]
    )
    settings = ["--side", "65", "--max-people", str(_MAX_PEOPLE), "--stride", "16"]
    command = [sys.executable, "-m", "personlab", *particular, str(pictures)]
    return [*command, "--weights", str(weights), "--out", str(out), *settings]


def _measured(how: str, images: int, command: Sequence[str], out: Path) -> Run:
    start = time.monotonic()
    threads = os.cpu_count() if how == "predict" else 1  # of a process
    running = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=subprocess.DEVNULL
    )
    seen: dict[int, Process] = {}
    while running.poll() is None:
        seen |= _look(running.pid)
        time.sleep(_SECOND)
    seconds = time.monotonic() - start
    if running.returncode:
        sys.exit(f"{' '.join(command)}: status {running.returncode}")
    peaks = {role: [p.peak_mb for p in seen.values() if p.role == role] for role in ("driver", "actor", "")}
    return Run(
        how=how,
        images=images,
        whole_seconds=seconds,
        rate=_rate(out, images),
        cpu_ms=1e3 * sum(process.cpu_seconds for process in seen.values()) / images,
        driver_mb=max(peaks["driver"]),
        worker_mb=max(peaks["actor"], default=0),
        others_mb=sum(peaks[""]),
    )


def _look(driver: int) -> dict[int, Process]:
    """The driver and all processes below it."""
    found = {}
    try:
        parent = psutil.Process(driver)
        everyone = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return {}
    for process in everyone:
        try:
            title, times = " ".join(process.cmdline()), process.cpu_times()
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (psutil.Error, OSError):
            continue
        peak = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
        role = "driver" if process.pid == driver else "actor" if _makes_parts(title) else ""
        found[process.pid] = Process(role, peak / 1024, times.user + times.system)
    return found


def _makes_parts(title: str) -> bool:
    return "MapWorker" in title or "--share" in title


def _rate(out: Path, images: int) -> float:
    """Images a second from the parts or pictures that were finished first (one a processor) to the last."""
    files = [*out.glob("part-*.parquet")] or [*out.glob("overlays/*.jpg")]
    times = sorted(path.stat().st_mtime for path in files)
    skipped = os.cpu_count() or 1
    return images * (len(times) - skipped) / len(times) / (times[-1] - times[skipped - 1])


# --- without Ray --------------------------------------------------------------------------------------------


def _plain(pictures: Path, weights: Path, out: Path, part_size: int) -> None:
    """As many processes as there are processors, each making its share of the parts."""
    job, listing = _job(pictures, weights, out, part_size)
    job.out.create()
    batch.write_plan(job, listing)
    processors = os.cpu_count() or 1
    own = [*(sys.executable, "-m", "benchmarks.batch", "--plain", str(pictures), str(weights), str(out))]
    shares = [
        subprocess.Popen([*own, "--part-size", str(part_size), "--share", str(index)])
        for index in range(processors)
    ]
    statuses = [share.wait() for share in shares]
    if any(statuses):
        sys.exit("a plain process failed")
    parts = [batch.read_part(job, number) for number in job.plan.parts]
    batch.write_manifest(job, [part for part in parts if part])


def _share(pictures: Path, weights: Path, out: Path, part_size: int, index: int) -> None:
    worker = Worker(_job(pictures, weights, out, part_size)[0])
    for number in worker.job.plan.parts[index :: os.cpu_count() or 1]:
        worker.make_part(number)


def _job(pictures: Path, weights: Path, out: Path, part_size: int) -> tuple[Job, Listing]:
    listing = list_images(str(pictures))
    plan = make_plan(listing, weights, _INFER, max_people=_MAX_PEOPLE, part_size=part_size)
    return Job(plan, listing.root, Folder(str(out)), str(weights), images.decode), listing


# --- showing ------------------------------------------------------------------------------------------------


def table(runs: Sequence[Run]) -> Table:
    """A row for each run, with Ray's rate as a share of the others': medians over the rounds."""
    shown = Table(title=f"{os.cpu_count()} processors, side {_INFER.sides[0]}")
    for heading in ("images", "how", "images/s", "Ray's share of it", "whole s", "CPU ms/image", "driver MB"):
        shown.add_column(heading, justify="left" if heading == "how" else "right")
    for heading in ("worker MB", "Ray's own MB"):
        shown.add_column(heading, justify="right")
    for count in sorted({run.images for run in runs}):
        ways = [[run for run in runs if run.images == count and run.how == how] for how in _WAYS]
        for same in ways:
            share = statistics.median(ray.rate / run.rate for run, ray in zip(same, ways[-1], strict=True))
            rate, seconds, cpu = (
                statistics.median(getattr(run, name) for run in same)
                for name in ("rate", "whole_seconds", "cpu_ms")
            )
            memory = (
                max(getattr(run, f"{who}_mb") for run in same) for who in ("driver", "worker", "others")
            )
            cells = (
                f"{rate:.1f}",
                f"{share:.0%}",
                f"{seconds:.0f}",
                f"{cpu:.1f}",
                *(f"{mb:.0f}" for mb in memory),
            )
            shown.add_row(str(count), same[0].how, *cells)
    return shown


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batch", description="Measure batch inference."
    )
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000], metavar="N")
    parser.add_argument("--part-size", type=int, default=64, metavar="N")
    parser.add_argument("--rounds", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--plain", type=Path, nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        torch.set_num_threads(1)
        pictures, weights, out = options.plain
        if options.share is None:
            _plain(pictures, weights, out, options.part_size)
        else:
            _share(pictures, weights, out, options.part_size, options.share)
        sys.exit()
    return options


if __name__ == "__main__":
    main()
