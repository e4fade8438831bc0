"""Time of the codec, and of tfjs body-pix 2.2.1 on the same fields in the same run.

    python -m benchmarks.codec [--people 10 60] [--strides 8] [--rounds 30] [--threads 2] [--json FILE]

Every round times each step and tfjs once, so that the load of the machine affects both alike. The table shows
medians and, in brackets, the fastest round, which is the better figure on a busy machine; below it is the
growth of the whole pose decode with the number of people. tfjs is left out without Node or if body-pix cannot
be installed. On a shared machine use one thread: two wait for each other.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.scenes import RADIUS, SIDE, people, predicted
from benchmarks.tfjs import Scene, Tfjs, TfjsError, install
from personlab.codec import hough as voting
from personlab.codec.decode import Decoder, Level
from personlab.codec.encode import encode
from personlab.codec.group import find_people, presence
from personlab.codec.pyramid import Frame
from personlab.codec.refine import refine
from personlab.codec.score import Poses, expected_oks, soft_nms
from personlab.skeleton import COCO_PERSON

CACHE = Path(".cache") / "bench-node"
WARM_UP = 3

# tfjs takes seconds for masks: number of people and rounds that they are measured with.
MASKS_PEOPLE, MASKS_ROUNDS = 10, 3


@dataclass(frozen=True)
class Timing:
    """One step at one stride with so many people, in milliseconds a call."""

    who: str  # cpu or tfjs
    step: str
    stride: int
    people: int
    median: float
    fastest: float


def main() -> None:
    options = _options()
    console = Console()
    torch.set_num_threads(options.threads)
    try:
        tfjs: AbstractContextManager[Tfjs | None] = Tfjs(install(CACHE))
    except TfjsError as reason:
        console.print(f"without tfjs body-pix: {reason}")
        tfjs = nullcontext()
    cases = [(stride, count) for stride in options.strides for count in options.people]
    timings: list[Timing] = []
    with tfjs as other:
        for stride, count in track(cases, "measuring", console=console, transient=True):
            timings += measure(stride, count, other, options.rounds)
    console.print(table(timings), *growth(timings), sep="\n")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([asdict(timing) for timing in timings], indent=1) + "\n")


def measure(stride: int, count: int, tfjs: Tfjs | None, rounds: int) -> Iterator[Timing]:
    """Every step, and tfjs, alternately."""
    calls = {("cpu", step): _clocked(work) for step, work in steps(stride, count).items()}
    slow: dict[tuple[str, str], Callable[[], float]] = {}
    if tfjs:
        with tempfile.TemporaryDirectory() as folder:
            fields = predicted(people(count, stride=stride), stride=stride)
            tfjs.load(Scene(fields, SIDE, SIDE, scale=1.0, people=count), Path(folder))
        calls["tfjs", "poses"] = tfjs.poses
        if count == MASKS_PEOPLE:
            slow = {
                ("tfjs", "masks"): lambda: tfjs.masks(17),
                ("tfjs", "masks, 5 keypoints"): lambda: tfjs.masks(5),
            }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in [*calls, *slow]}
    for _ in range(WARM_UP):
        for call in calls.values():
            call()
    for round_ in range(rounds):
        for key, call in (calls | slow if round_ < MASKS_ROUNDS else calls).items():
            times[key].append(call())
    for (who, step), taken in times.items():
        yield Timing(who, step, stride, count, statistics.median(taken), min(taken))


def steps(stride: int, count: int) -> dict[str, Callable[[], object]]:
    """The steps of the codec as functions without arguments."""
    instances = people(count, stride=stride)
    fields = predicted(instances, stride=stride)
    decoder = Decoder(max_people=max(20, count))
    levels = [Level(fields, 1.0)]
    frame = Frame.common(levels, SIDE, SIDE)

    def vote():  # type: ignore[no-untyped-def]
        return voting.vote(levels, frame, radius=RADIUS, bin=decoder.bin, threshold=decoder.seed_threshold)

    def group():  # type: ignore[no-untyped-def]
        return find_people(
            levels,
            frame,
            seeds,
            trace_refinements=decoder.trace_refinements,
            nms_radius=decoder.nms_radius,
            most=1000,
            skeleton=COCO_PERSON,
        )

    def score() -> object:
        present = presence(levels, frame, found)
        scores = expected_oks(hough, found, present, radius=RADIUS, kappas=COCO_PERSON.kappas)
        return soft_nms(Poses.of(found, present, scores), nms_radius=decoder.nms_radius)

    photo = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    hough, seeds = vote()
    found = group()
    decoded = decoder.poses(levels, height=SIDE, width=SIDE)
    return {
        "encode": lambda: encode(instances, stride=stride, radius=RADIUS, skeleton=COCO_PERSON),
        "refine": lambda: refine(fields, skeleton=COCO_PERSON),
        "vote": vote,
        "group": group,
        "score": score,
        "poses": lambda: decoder.poses(levels, height=SIDE, width=SIDE),
        "masks": lambda: list(decoder.masks(levels, decoded, height=SIDE, width=SIDE)),
        "poses and masks": lambda: list(decoder.decode(levels, height=SIDE, width=SIDE)[1]),
        "the same, guided": lambda: list(decoder.decode(levels, height=SIDE, width=SIDE, image=photo)[1]),
    }


def _clocked(work: Callable[[], object]) -> Callable[[], float]:
    def call() -> float:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3

    return call


def table(timings: list[Timing]) -> Table:
    """A row for each step, stride and number of people; a column for each who."""
    by_who = {(t.who, t.step, t.stride, t.people): t for t in timings}
    who = [name for name in ("cpu", "tfjs") if any(t.who == name for t in timings)]
    shown = Table(title=f"{SIDE} x {SIDE}, milliseconds a call: median (fastest)")
    for heading in ("step", "stride", "people", *who, *(["tfjs / cpu"] if "tfjs" in who else [])):
        shown.add_column(heading, justify="left" if heading == "step" else "right")
    for step, stride, count in dict.fromkeys((t.step, t.stride, t.people) for t in timings):
        row = [by_who.get((name, step, stride, count)) for name in who]
        cells = [f"{t.median:.2f} ({t.fastest:.2f})" if t else "" for t in row]
        ours, theirs = row[0], by_who.get(("tfjs", step, stride, count))
        if ours and theirs:
            cells.append(f"{theirs.median / ours.median:.1f} ({theirs.fastest / ours.fastest:.1f})")
        shown.add_row(step, str(stride), str(count), *cells)
    return shown


def growth(timings: list[Timing]) -> Iterator[str]:
    """Time of the whole pose decode with the most people over that with 10: medians and fastest rounds."""
    poses = {(t.who, t.stride, t.people): t for t in timings if t.step == "poses"}
    most = max(t.people for t in timings)
    for (who, stride, count), few in poses.items():
        if count == 10 < most:
            many = poses[who, stride, most]
            ratio = f"{many.median / few.median:.2f} ({many.fastest / few.fastest:.2f})"
            yield f"{who}, stride {stride}: {most} people take {ratio} times as long as 10"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.codec", description="Measure the codec beside tfjs body-pix 2.2.1."
    )
    parser.add_argument("--people", type=int, nargs="+", default=[1, 10, 30, 60], metavar="N")
    parser.add_argument("--strides", type=int, nargs="+", default=[8, 16], choices=[8, 16, 32], metavar="S")
    parser.add_argument("--rounds", type=int, default=30, metavar="N")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of torch, on the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
