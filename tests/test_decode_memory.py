"""What decoding a large picture takes of memory: the accumulator, and nothing at the picture's resolution."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.coco_person import K
from tests.conftest import ROOT

SIDE, BIN = 2401, 2
PROCESS = Path("/proc/self")


def peak(work: Callable[[], object]) -> int:
    """How many bytes this process holds at most while it works, beyond those it held before.

    The most of five times: what was freed before may be used again.
    """
    peaks = []
    for _ in range(5):
        (PROCESS / "clear_refs").write_text("5")  # forget the peak so far
        before = held("VmRSS")
        work()
        peaks.append(held("VmHWM") - before)
    return max(peaks)


def held(what: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def decode() -> None:
    """Print how many are found, and the peaks of finding them and of their masks."""
    from personlab.codec.decode import Decoder, Level
    from tests.reference.scenes import figure, predicted, scene

    people = [figure(400.0 + 500.0 * (n % 4), 150.0 + 800.0 * (n // 4), 700.0) for n in range(8)]
    levels = [Level(predicted(scene(people, height=SIDE, width=SIDE, stride=8), radius=32.0), 1.0)]
    decoder, size = Decoder(bin=float(BIN)), {"height": SIDE, "width": SIDE}
    found = decoder.poses(levels, **size)  # compiled by now
    poses = peak(lambda: decoder.poses(levels, **size))
    print(
        len(found.scores), poses, peak(lambda: [mask.sum() for mask in decoder.masks(levels, found, **size)])
    )


@pytest.mark.skipif(not (PROCESS / "clear_refs").exists(), reason="only Linux says what the peak was")
def test_a_level_of_2401_pixels() -> None:
    """Poses: one accumulator, an eighth of what K maps of the picture in double precision would be.
    Masks, one at a time: less than that again.

    In a process of its own: what other tests have freed would be used again and not be seen.
    """
    command = [sys.executable, "-c", "from tests.test_decode_memory import decode; decode()"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found, poses, masks = map(int, done.stdout.split())
    accumulator = K * (SIDE // BIN + 1) ** 2 * 4  # bytes, single precision
    assert found >= 8
    # A decoder that kept its accumulator from call to call would seem to need none. Of a new one the kernel
    # gives the pages that are written to: 47% of its bytes in pages of 4 KiB, 92% where it has huge pages.
    assert 0.4 * accumulator < poses < 1.2 * accumulator
    assert masks < accumulator
