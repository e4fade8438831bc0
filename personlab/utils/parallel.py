"""Apply a function in processes, for work that holds the GIL."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from personlab.errors import UserError

S = TypeVar("S")
T = TypeVar("T")


def in_processes(function: Callable[[S], T], items: Sequence[S], *, min_per_process: int) -> Iterator[T]:
    """`map(function, items)`, in order, by a process for each processor, or fewer for few items.

    Function, items and results are pickled. An exception ends the work and is raised here.

    Args:
        min_per_process: it takes a second to start a process.

    Raises:
        UserError: a process was killed.
    """
    count = min(os.cpu_count() or 1, len(items) // min_per_process)
    if count < 2:
        yield from map(function, items)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of this process's threads
    pool = ProcessPoolExecutor(count, spawn, _follow_parent)
    try:
        yield from pool.map(function, items)
    except BrokenProcessPool:
        raise UserError(
            f"one of {count} processes was killed, perhaps because there is too little memory; try again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """End this process if its parent is killed; leave Ctrl-C to the parent, which ends the work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
