"""What decoding a large picture takes of memory: the accumulator, and nothing at the picture's resolution."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from personlab.codec.decode import Decoder, Level
from personlab.skeleton import K
from tests.reference.scenes import figure, predicted, scene

SIDE, BIN = 2401, 2
ACCUMULATOR = K * (SIDE // BIN + 1) ** 2 * 4  # bytes, single precision
PROCESS = Path("/proc/self")


def peak(work: Callable[[], object]) -> int:
    """How many bytes this process holds at most while it works, beyond those it held before."""
    gc.collect()  # what other tests have left would be collected while it works, and make room
    (PROCESS / "clear_refs").write_text("5")  # forget the peak so far
    before = held("VmRSS")
    work()
    return held("VmHWM") - before


def held(what: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


@pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="only Linux says what the peak was")
def test_a_level_of_2401_pixels() -> None:
    """Poses: one accumulator, an eighth of what K maps of the picture in double precision would be.
    Masks, one at a time: less than that again."""
    people = [figure(400.0 + 500.0 * (n % 4), 150.0 + 800.0 * (n // 4), 700.0) for n in range(8)]
    levels = [Level(predicted(scene(people, height=SIDE, width=SIDE, stride=8), radius=32.0), 1.0)]
    decoder, size = Decoder(bin=float(BIN)), {"height": SIDE, "width": SIDE}
    found = decoder.poses(levels, **size)  # compiled by now
    assert len(found.scores) >= 8
    # A decoder that kept its accumulator from call to call would seem to need none.
    assert 0.5 * ACCUMULATOR < peak(lambda: decoder.poses(levels, **size)) < 1.2 * ACCUMULATOR
    assert peak(lambda: [mask.sum() for mask in decoder.masks(levels, found, **size)]) < ACCUMULATOR
