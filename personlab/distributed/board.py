"""A Ray Train run: shown while it goes on, and ended where trying again cannot help."""

import errno
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import ray
from ray.train import ControllerError, TrainingFailedError
from ray.train.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from personlab.errors import UserError
from personlab.utils import logs
from personlab.utils.progress import progress

log = logging.getLogger("personlab")

_POLL_SECONDS = 0.5
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Where a training worker posts how far it is; the driver reads it to draw progress."""

    def __init__(self) -> None:
        self.step = 0
        self.news: list[str] = []
        self.reason: str | None = None

    def post(self, step: int, news: str | None = None) -> None:
        """step: how many are done. news: a line for the log."""
        self.step = step
        self.news += [news] if news else []

    def read(self) -> tuple[int, list[str]]:
        """Steps done, and the log lines since the last call."""
        news, self.news = self.news, []
        return self.step, news

    def give_up(self, reason: str) -> None:
        self.reason = reason

    def given_up(self) -> str | None:
        """Why there is no sense in going on, if there is none."""
        return self.reason


def no_retry(work: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """A training function whose UserErrors and full disks end the run: Ray would try again what cannot go
    better.

    `work` is handed a config that holds the run's `board`.
    """

    @functools.wraps(work)
    def worker(config: dict[str, Any]) -> None:
        board = config["board"]
        if ray.get(board.given_up.remote()):
            return
        try:
            work(config)
        except (UserError, OSError) as error:
            if reason := _hopeless(error):
                ray.get(board.give_up.remote(reason))
            raise

    return worker


def _hopeless(error: BaseException) -> str | None:
    """What the user has to mend, if the error says so."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"{error}; make room, and the same command goes on from the last checkpoint"
    return str(error) if isinstance(error, UserError) else None


@contextmanager
def watch(total: int, label: str) -> Iterator[Any]:
    """A `ProgressBoard` actor whose posts are shown and logged on the driver for the time of the block."""
    # beside the driver: with any other node the run could go on without it
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ProgressBoard.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    done = threading.Event()

    def counts() -> Iterator[int]:
        """Steps done so far, now and then; what is news goes to the log."""
        finished = False
        while not finished:
            finished = done.wait(_POLL_SECONDS)
            step, news = ray.get(board.read.remote())
            for line in news:
                log.info("%s: %s", label, line, extra=logs.progress(label, step, total))
            yield step

    def steps(shown: int, counts: Iterator[int]) -> Iterator[int]:
        for count in counts:
            yield from range(shown, count)
            shown = max(shown, count)

    def show() -> None:
        posted = counts()
        begun = next(filter(None, posted), 0)  # a run that goes on first posts where it does
        for _ in progress(steps(begun, posted), total=total, label=label, begun=begun):
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
    """Train.

    Raises:
        UserError: raised by a worker whose function is `final`, or a disk is full; what else stops the
            training keeps its traceback.
    """
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failure = error.controller_failure if isinstance(error, ControllerError) else error
        if reason := ray.get(board.given_up.remote()) or _hopeless(failure):
            raise UserError(reason) from None
        raise
    if reason := ray.get(board.given_up.remote()):
        raise UserError(reason)
