"""Apply a function in processes, for work that holds Python's lock."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def in_processes(function: Callable[[S], T], items: Sequence[S], *, least: int) -> Iterator[T]:
    """`map(function, items)`, in order, by as many processes as there are processors.

    Function, items and results are pickled. An exception ends the work and is raised here.

    Args:
        least: items for each process, at least: it takes a second to start one.
    """
    count = min(os.cpu_count() or 1, len(items) // least)
    if count < 2:
        yield from map(function, items)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of this process's threads
    pool = ProcessPoolExecutor(count, spawn, _follow_parent)
    try:
        yield from pool.map(function, items)
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
