"""The application behind Ray Serve: several replicas of it, on the nodes of a cluster."""

import logging
import signal
import threading
from collections.abc import Callable
from typing import Final

from fastapi import FastAPI

from personlab.distributed import cluster
from personlab.errors import UserError

_NAME: Final = "personlab"


def serve_replicas(
    make: Callable[[], FastAPI], *, replicas: int, requests: int, host: str, port: int
) -> None:
    """Serve the application that `make` returns in each replica, until Ctrl-C.

    The cluster is the one at RAY_ADDRESS, else a private one. Replicas on the same node share its processors.

    Args:
        requests: that a replica is given at a time. More wait in Ray Serve, so this has to be more than the
            replica's own queue, which answers when it is full.

    Raises:
        UserError: Ray Serve is not installed, or the cluster has fewer processors than there are replicas.
    """
    try:
        from ray import serve
    except ImportError:
        raise UserError("--replicas needs Ray Serve: pip install 'personlab[ray-serve]'") from None

    class Replica:
        """Holds nothing itself: the application does."""

    with cluster.connect():
        cluster.require(replicas, cpus=1, gpus=0, hint="lower --replicas")
        deployment = serve.deployment(
            serve.ingress(make)(Replica),
            name=_NAME,
            num_replicas=replicas,
            max_ongoing_requests=requests,
            ray_actor_options={"num_cpus": cluster.cpus_per_worker(replicas, gpu=False)},
        )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        quiet = {"log_level": logging.WARNING, "enable_access_log": False}
        serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
        serve.run(deployment.bind(), name=_NAME, logging_config=quiet)
        print(f"http://{host}:{port}", flush=True)
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        stopped.wait()
        serve.delete(_NAME)
