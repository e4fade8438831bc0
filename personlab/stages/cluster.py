"""Where Ray comes from, and how a Ray Train run is watched.

With RAY_ADDRESS (or the parameter ray.address) set, stages use that cluster; otherwise each starts a private
one on this machine and takes it down again. Nothing else in the program knows which it is.
"""

import errno
import functools
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import ray
import ray.data
from ray.train import ControllerError, TrainingFailedError
from ray.train.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from personlab.errors import UserError
from personlab.logs import how_far
from personlab.progress import progress

log = logging.getLogger("personlab")

# Shards are mapped files and batches are small: the store need not be Ray's default third of the memory.
_OBJECT_STORE_BYTES = 512 * 2**20
_POLL_SECONDS = 0.5
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Ray for the time of the block: the caller's if one is connected, else the cluster at RAY_ADDRESS or at
    `address`, else a local one.

    Raises:
        UserError: there is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS") or address:
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            raise UserError(f"no Ray cluster at {address} (RAY_ADDRESS or ray.address): {error}") from error
        _set_up_data()
        try:
            yield
        finally:
            ray.shutdown()
        return
    # A local cluster is reached from this machine only and lives as long as the block: no token needed.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Training reads its shards anew every epoch. Workers that Ray ended in between would have to be started
    # again each time, which takes seconds of processor time; waiting ones cost nothing.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    os.environ.setdefault("RAY_num_workers_soft_limit", "8")
    ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
    _set_up_data()
    try:
        yield
    finally:
        ray.shutdown()


def _set_up_data() -> None:
    """Ray Data's own plans and bars stay in its log files, and reading takes no actors.

    Stages show how far they are themselves. Ray 2.60's newer reader starts two actor processes every time a
    dataset is read, which is every epoch; the older one reads in tasks, whose processes stay.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # or it warns of just that
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)


@ray.remote(num_cpus=0)
class Board:
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


def final(work: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
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
    """A `Board` actor whose posts are shown and logged on the driver for the time of the block."""
    # beside the driver: with any other node the run could go on without it
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    done = threading.Event()

    def counts() -> Iterator[int]:
        """Steps done so far, now and then; what is news goes to the log."""
        finished = False
        while not finished:
            finished = done.wait(_POLL_SECONDS)
            step, news = ray.get(board.read.remote())
            for line in news:
                log.info("%s: %s", label, line, extra=how_far(label, step, total))
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


def require(workers: int, *, cpus: float, gpus: float, mend: str) -> None:
    """See that there is a place for each of `workers` that need so much: Ray would wait for it for ever.

    The nodes that are there now count, even where more could come: stages count what there is when they
    begin, and would not use those. mend: what the user can do, but for starting nodes.

    Raises:
        UserError: there are fewer places.
    """
    nodes = _nodes()
    wanted = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
    places = sum(int(min(node.get(name, 0) // amount for name, amount in wanted.items())) for node in nodes)
    if places >= workers:
        return
    there = " and ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}s" for name in ("CPU", "GPU"))
    each = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items())
    raise UserError(
        f"{workers} workers with {each} each are wanted, and Ray has places for {places} ({there} on "
        f"{len(nodes)} nodes); {mend}, or start more nodes first"
    )


def node_cpus() -> int:
    """CPUs of the largest node: what one worker can have at most."""
    return max(int(node.get("CPU", 0)) for node in _nodes())


def _nodes() -> list[dict[str, float]]:
    """What each node that is alive has: CPU, GPU and more."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def processors_each(workers: int, *, gpu: bool) -> int:
    """How many processors each of a run's workers has to itself, on nodes that are alike."""
    nodes = _nodes()
    if gpu:
        beside = min(workers, max(int(node.get("GPU", 1)) for node in nodes))
    else:
        beside = math.ceil(workers / sum(node.get("CPU", 0) > 0 for node in nodes))
    return max(1, node_cpus() // beside)


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
