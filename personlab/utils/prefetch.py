"""Apply a function in threads, ahead of the consumer."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def prefetch(
    function: Callable[[S], T], items: Iterable[S], *, threads: int, depth: int
) -> Generator[T, None, None]:
    """`map(function, items)`, in order, computed by `threads` threads up to `depth` items ahead."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[T]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
