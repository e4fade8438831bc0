"""Where Ray comes from, and what there is of it.

With RAY_ADDRESS (or the parameter compute.ray_address) set, stages use that cluster; otherwise each starts a
private one on this machine and takes it down again. Nothing else in the program knows which it is.
"""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

from personlab.errors import UserError

# Shards are mapped files and batches are small: the store need not be Ray's default third of the memory.
_OBJECT_STORE_BYTES = 512 * 2**20


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
            raise UserError(
                f"no Ray cluster at {address} (RAY_ADDRESS or compute.ray_address): {error}"
            ) from error
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
    # Nobody drains the one node of a private cluster: no process need wait for warnings of that.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
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
