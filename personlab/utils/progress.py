"""Progress of long loops: a bar on a terminal, log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Final, Protocol, TypeVar

from tqdm import tqdm

from personlab.utils import logs

log = logging.getLogger("personlab")

T = TypeVar("T")


class Tracker(Protocol):
    """The type of `progress`, for functions that take it as an argument."""

    def __call__(self, iterable: Iterable[T], *, total: int | None = None, label: str) -> Iterator[T]: ...


LOG_EVERY: Final = 30.0  # seconds


def progress(iterable: Iterable[T], *, total: int | None = None, label: str, begun: int = 0) -> Iterator[T]:
    """Iterate and show on stderr how many items are done, the rate and the time left.

    On a terminal this is a bar, elsewhere an INFO line every 30 seconds ("label: 120/400, 3.1/s, 1.5 min
    left").

    Args:
        total: number of items, including those of earlier runs. Default: `begun` plus the length of
            `iterable`, if it has one.
        begun: items that earlier runs have done.
    """
    if total is None and isinstance(iterable, Sized):
        total = begun + len(iterable)
    if sys.stderr.isatty():
        return iter(tqdm(iterable, label, total, initial=begun))
    return _lines(iterable, total, label, begun)


def print_line(line: str) -> None:
    """Print a line to stdout, above the bar if there is one."""
    tqdm.write(line)


def _lines(iterable: Iterable[T], total: int | None, label: str, begun: int) -> Iterator[T]:
    start = logged = time.monotonic()
    for done, item in enumerate(iterable, begun):
        now = time.monotonic()
        if now - logged >= LOG_EVERY:
            logged = now
            state = _state(done, total, (done - begun) / (now - start))
            log.info("%s: %s", label, state, extra=logs.progress(label, done, total))
        yield item


def _state(done: int, total: int | None, rate: float) -> str:
    """E.g. "120/400, 3.1/s, 1.5 min left"."""
    if total is None or rate == 0:
        return f"{done}{'' if total is None else f'/{total}'}, {_rate(rate)}"
    return f"{done}/{total}, {_rate(rate)}, {_duration((total - done) / rate)} left"


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.1f}/min"


def _duration(seconds: float) -> str:
    """E.g. "45 s", "3.1 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
