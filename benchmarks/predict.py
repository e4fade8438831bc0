"""Time of `personlab predict` for an image, piece by piece and as a whole.

    python -m benchmarks.predict --weights FILE --images FOLDER [--side 513] [--stride 16] [--rounds 5]
                                 [--threads 2] [--json FILE]

Every round runs every piece on every image; the table shows the mean over the images of the median round. In
each round the whole of `predict` runs on the same images as well, so that the load of the machine affects
both alike; and once more in another process, which returns freed memory to the system
(personlab/utils/malloc.py).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from personlab.codec.decode import detections
from personlab.data import images
from personlab.inference.listing import Fetch, Listing, list_images
from personlab.inference.predict import Image, Output, draw, plan_images, predict
from personlab.inference.results import Result
from personlab.params import Infer, Stride
from personlab.predictor import Predictor
from personlab.skeleton import COCO_PERSON
from personlab.utils import malloc

T = TypeVar("T")
Times = dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class Timing:
    """One piece, or the whole, in milliseconds a picture."""

    piece: str
    milliseconds: float


def main() -> None:
    options = _options()
    console = Console()
    malloc.disable_trim()
    listing = list_images(str(options.images))
    with tempfile.TemporaryDirectory() as folder:
        load = Load(options.weights, options.side, options.stride, options.threads)
        timings = measure(
            load, listing, Output(Path(folder), "json", params_hash="", skeleton=COCO_PERSON), options.rounds
        )
    console.print(table(timings, len(listing.entries), options))
    if options.json:
        options.json.write_text(json.dumps([asdict(timing) for timing in timings], indent=1) + "\n")


@dataclass(frozen=True)
class Load:
    """The predictor that a process loads."""

    weights: Path
    side: int
    stride: Stride
    threads: int  # of torch


@cache
def loaded(load: Load) -> Predictor:
    torch.set_num_threads(load.threads)
    return Predictor.from_checkpoint(
        load.weights, Infer(sides=(load.side,), stride=load.stride, precision="float32")
    )


def whole(load: Load, listing: Listing, output: Output) -> float:
    """Milliseconds a picture of all that `predict` does, but for loading the network."""
    predictor = loaded(load)
    start = time.perf_counter()
    predict(predictor, [listing], output, progress=_silent, report=lambda _: None)
    return (time.perf_counter() - start) * 1e3 / len(listing.entries)


def measure(load: Load, listing: Listing, output: Output, rounds: int) -> list[Timing]:
    """The pieces, the whole, and the whole in another process, which gives freed memory back."""
    predictor, all_of_it = loaded(load), partial(whole, load, listing, output)
    fetches = [fetch for _, fetch in listing.read()]
    planned = list(zip(plan_images(listing.paths()), fetches, strict=True))
    for image, fetch in planned[:3]:  # compile, and let the allocator see the sizes
        _walk(predictor, image, fetch, output, defaultdict(list))
    times: Times = defaultdict(list)
    kept, given_back = list[float](), list[float]()
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        other.submit(all_of_it).result()  # likewise
        for _ in track(range(rounds), "measuring", transient=True):
            for image, fetch in planned:
                _walk(predictor, image, fetch, output, times)
            kept.append(all_of_it())
            given_back.append(other.submit(all_of_it).result())
    medians = defaultdict[str, list[float]](list)
    for (piece, _), taken in times.items():
        medians[piece].append(statistics.median(taken))
    pieces = [Timing(piece, statistics.mean(values)) for piece, values in medians.items()]
    ends = Timing("whole", statistics.median(kept)), Timing("given back", statistics.median(given_back))
    return [*pieces, *ends]


def _walk(predictor: Predictor, item: Image, fetch: Fetch, output: Output, times: Times) -> None:
    """What `predict` does with a picture, each piece on its own."""

    def timed(piece: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        times[piece, item.path].append((time.perf_counter() - start) * 1e3)
        return result

    decoder = predictor.decoder
    image = timed("decode JPEG", lambda: images.decode(fetch()))
    height, width = image.shape[:2]
    levels = timed("network", lambda: [predictor.level(image, side) for side in predictor.sides])
    found, drawn = timed(
        "codec: poses", lambda: decoder.decode(levels, height=height, width=width, image=image)
    )
    masks = timed("codec: masks", lambda: list(drawn))
    people = timed("run lengths", lambda: list(detections(found, masks)))
    result = Result(item.id, item.file_name, height, width, people, skeleton=COCO_PERSON)
    overlay = timed("draw", lambda: draw(image, result))
    timed("write", lambda: output.write_one(item, overlay, result))


def _silent(iterable: Iterable[T], *, total: int | None = None, label: str) -> Iterator[T]:
    yield from iterable


def table(timings: list[Timing], pictures: int, options: argparse.Namespace) -> Table:
    """A row for each piece, with its share of their sum; then how much of the sum is codec, and the whole."""
    *pieces, whole, given_back = timings
    total = sum(timing.milliseconds for timing in pieces)
    codec = sum(timing.milliseconds for timing in pieces if timing.piece.startswith("codec"))
    shown = Table(
        title=f"{pictures} pictures, side {options.side}, stride {options.stride}, {options.threads} threads"
    )
    for heading in ("piece", "ms a picture", "share"):
        shown.add_column(heading, justify="left" if heading == "piece" else "right")
    for timing in pieces:
        shown.add_row(timing.piece, f"{timing.milliseconds:.2f}", f"{timing.milliseconds / total:.1%}")
    shown.add_section()
    shown.add_row("sum of the pieces", f"{total:.2f}", "100%")
    shown.add_row("codec / sum", f"{codec:.2f}", f"{codec / total:.1%}")
    shown.add_row("whole predict", f"{whole.milliseconds:.2f}", f"{1e3 / whole.milliseconds:.1f} pictures/s")
    slower = f"{given_back.milliseconds / whole.milliseconds:.2f}x"
    shown.add_row("where freed memory is given back", f"{given_back.milliseconds:.2f}", slower)
    return shown


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict", description="Measure predict, piece by piece."
    )
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--side", type=int, default=513, metavar="N")
    parser.add_argument("--stride", type=int, default=16, choices=[8, 16, 32])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
