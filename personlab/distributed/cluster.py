"""Connect to a Ray cluster and ask what it has.

Stages use the cluster at RAY_ADDRESS, else the one at the parameter compute.ray_address; without either, each
stage starts a private cluster on this machine and stops it when it is done.
"""

import logging
import math
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import ray
import ray.data
from ray._private.services import canonicalize_bootstrap_address_or_die

from personlab.errors import UserError

log = logging.getLogger("personlab")

# Shards are memory-mapped and batches are small: no need for Ray's default, a third of the memory.
_OBJECT_STORE_BYTES: Final = 512 * 2**20

# Defaults of the environment of a private cluster.
_PRIVATE: Final = {
    "RAY_AUTH_MODE": "disabled",  # only this machine reaches it, and only while the stage runs
    "RAY_USAGE_STATS_ENABLED": "0",
    # Keep idle worker processes: training reads its shards every epoch, and restarting them takes seconds.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_num_workers_soft_limit": "8",
    # A single node is never drained, so nothing needs to watch for it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
_QUIET: Final[dict[str, Any]] = {"log_to_driver": False, "logging_level": logging.ERROR}

_USUAL_FOLDER: Final = "/tmp"
_LONGEST_FOLDER: Final = 39  # bytes; with what Ray appends, a socket's path has the 107 that Linux allows
_PROBE_SECONDS: Final = 10.0
_HTTP2_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS: Final = 4  # type of the frame that an HTTP/2 server sends first


@contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Connect to Ray for the block: to the cluster at RAY_ADDRESS, at `address`, or a private one.

    A connection that exists already is used and left open.

    Raises:
        UserError: there is no cluster at the address, or Ray cannot start on this machine.
    """
    if ray.is_initialized():
        yield
        return
    source = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else "compute.ray_address"
    address = os.environ.get("RAY_ADDRESS") or address
    if not address or address == "local":
        _start()
    else:
        _join(address, source)
    try:
        _configure_data()
        yield
    finally:
        ray.shutdown()


def _join(address: str, source: str) -> None:
    """Connect to a cluster. source: where the address is set, for the error."""
    try:
        _probe(address.removeprefix("ray://"))
        ray.init(address=address, **_QUIET)
    except Exception as error:  # Ray raises exceptions of many types, some with long advice
        reason = re.split(r"\. |\n", getattr(error, "strerror", None) or str(error))[0]
        raise UserError(
            f"no Ray cluster at {address} ({source}): {reason}; give HOST:PORT of its head, such as "
            "10.0.0.5:6379, or 'auto' on one of its nodes"
        ) from error


def _probe(address: str) -> None:
    """Check that a gRPC server answers; Ray itself tries for minutes, and Ray Client for half a minute.

    Raises:
        ValueError: the address is malformed.
        OSError: nothing answers, or not gRPC.
    """
    if "://" in address:
        raise ValueError("not an address of the form HOST:PORT")
    host, _, port = canonicalize_bootstrap_address_or_die(address).rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            connection.sendall(_HTTP2_GREETING)
            if connection.recv(9)[3:4] != bytes((_SETTINGS,)):
                raise ConnectionError("another program answers at this port")


def _start() -> None:
    """Start a private cluster."""
    for name, value in _PRIVATE.items():
        os.environ.setdefault(name, value)
    options = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES, **_QUIET}
    try:
        ray.init(address="local", _temp_dir=_temp_dir(), **options)
    except Exception as error:  # a bare one if the machine is too busy for its processes to start in 30 s
        reason = str(error).rstrip(".")
        raise UserError(
            f"Ray cannot start: {reason}; RAY_TMPDIR sets the folder of its files, {_USUAL_FOLDER} by default"
        ) from error


def _temp_dir() -> str | None:
    """The folder of Ray's files, if the one that the environment sets does not suit Ray's sockets."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or _USUAL_FOLDER
    if len(folder) <= _LONGEST_FOLDER and folder.isascii() and Path(folder).is_absolute():
        return None
    log.info(
        "Ray's files go to %s: its sockets need an absolute path of at most %d ASCII characters, unlike %s",
        *(_USUAL_FOLDER, _LONGEST_FOLDER, folder),
    )
    return f"{_USUAL_FOLDER}/ray"


def _configure_data() -> None:
    """Keep Ray Data's plans and progress bars in its log files, and read files in tasks.

    Ray 2.60's newer reader starts two actor processes for every dataset, that is, every epoch; the tasks of
    the older one reuse worker processes.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that bars are disabled
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)


def require(workers: int, *, cpus: float, gpus: float, hint: str) -> None:
    """Check that the cluster has room for `workers` with `cpus` and `gpus` each; Ray would wait forever.

    Only the nodes that are up now count, even if the cluster can scale: a stage sizes its work by the nodes
    it finds.

    Args:
        hint: what the user can do besides adding nodes, for the message.

    Raises:
        UserError: there is not enough room.
    """
    available = room(cpus=cpus, gpus=gpus)
    if available >= workers:
        return
    nodes = _nodes()
    each = " and ".join(f"{amount:g} {name}" for name, amount in _needed(cpus, gpus).items())
    total = " and ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}s" for name in ("CPU", "GPU"))
    raise UserError(
        f"{workers} workers with {each} each requested, but Ray has room for {available} ({total} on "
        f"{len(nodes)} nodes); {hint}, or add nodes"
    )


def room(*, cpus: float, gpus: float) -> int:
    """How many workers with `cpus` and `gpus` each fit on the nodes that are up."""
    needed = _needed(cpus, gpus)
    return sum(int(min(node.get(name, 0) / each for name, each in needed.items())) for node in _nodes())


def _needed(cpus: float, gpus: float) -> dict[str, float]:
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}


def node_cpus() -> int:
    """CPUs of the largest node, the most that one worker can have."""
    return max(int(node.get("CPU", 0)) for node in _nodes())


def cpus_per_worker(workers: int, *, gpu: bool) -> int:
    """CPUs of a node divided by the training workers on it, on nodes that are alike; at least 1."""
    nodes = _nodes()
    if gpu:
        per_node = min(workers, max(int(node.get("GPU", 1)) for node in nodes))
    else:
        per_node = math.ceil(workers / sum(node.get("CPU", 0) > 0 for node in nodes))
    return max(1, node_cpus() // per_node)


def _nodes() -> list[dict[str, float]]:
    """Resources (CPU, GPU, ...) of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
