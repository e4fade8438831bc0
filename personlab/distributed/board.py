"""Progress and failures of a Ray Train run: workers post them to a `ProgressBoard`, the driver shows them."""

import errno
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import ray
from ray.train import ControllerError, TrainingFailedError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from personlab.distributed.progress_board import ProgressBoard
from personlab.errors import UserError
from personlab.utils import logs
from personlab.utils.progress import progress

log = logging.getLogger("personlab")

_POLL_SECONDS: Final = 0.5
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def no_retry(work: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Decorate a training function so that a permanent error ends the run, without Ray's retries.

    The function's config must hold the run's `board`.
    """

    @functools.wraps(work)
    def worker(config: dict[str, Any]) -> None:
        board = config["board"]
        if ray.get(board.failure.remote()):  # a retry by Ray
            return
        try:
            work(config)
        except Exception as error:
            if is_permanent(error):
                ray.get(board.fail.remote(_reason(error)))
            raise

    return worker


def is_permanent(error: BaseException) -> bool:
    """Whether a retry would fail in the same way: the user has to act, or a disk is full."""
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in _DISK_FULL)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{error}; make room, then run the same command to resume from the last checkpoint"
    return str(error)


@contextmanager
def watch(total: int, label: str) -> Iterator[Any]:
    """Start a `ProgressBoard`; for the block, show its steps as progress and write its lines to the log."""
    # On the driver's node: the loss of any other node must not take the board away.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ProgressBoard.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    done = threading.Event()

    def poll() -> Iterator[int]:
        """Finished steps at each poll; log lines are written on the way."""
        finished = False
        while not finished:
            finished = done.wait(_POLL_SECONDS)
            step, lines = ray.get(board.read.remote())
            for line in lines:
                log.info("%s: %s", label, line, extra=logs.progress(label, step, total))
            yield step

    def steps(shown: int, counts: Iterator[int]) -> Iterator[int]:
        for count in counts:
            yield from range(shown, count)
            shown = max(shown, count)

    def show() -> None:
        counts = poll()
        begun = next(filter(None, counts), 0)  # a resumed run posts its first step at once
        for _ in progress(steps(begun, counts), total=total, label=label, begun=begun):
            pass

    viewer = threading.Thread(target=show, daemon=True)
    viewer.start()
    try:
        yield board
    finally:
        done.set()
        viewer.join(timeout=10)
        ray.kill(board)


def fit(trainer: DataParallelTrainer, board: Any) -> None:
    """Run the training.

    Raises:
        UserError: a worker decorated with `no_retry` failed permanently, or a disk of the driver is full.
        TrainingFailedError: the training failed in another way.
    """
    try:
        trainer.fit()
    except TrainingFailedError as error:
        cause = error.controller_failure if isinstance(error, ControllerError) else error
        reason = ray.get(board.failure.remote()) or (_reason(cause) if is_permanent(cause) else None)
        if reason:
            raise UserError(reason) from None
        raise
    if reason := ray.get(board.failure.remote()):
        raise UserError(reason)
