"""Requests that a Ray cluster has no room for are refused, instead of waiting forever."""

import pytest

from personlab.distributed import cluster
from personlab.errors import UserError

pytestmark = pytest.mark.slow


def test_requests_that_fit_are_accepted(ray_local: None) -> None:
    cluster.require(1, cpus=cluster.node_cpus(), gpus=0, hint="")
    cluster.require(2 * cluster.node_cpus(), cpus=0.5, gpus=0, hint="")


@pytest.mark.parametrize(("workers", "cpus", "gpus"), [(10**6, 0.5, 0), (1, 10**6, 0), (1, 0, 10**6)])
def test_requests_without_room_are_refused(ray_local: None, workers: int, cpus: float, gpus: int) -> None:
    total = rf"room for \d+ \({cluster.node_cpus()} CPUs and \d+ GPUs on 1 nodes\)"
    with pytest.raises(UserError, match=rf"^{workers} workers with .* {total}; set x to 1, or add nodes$"):
        cluster.require(workers, cpus=cpus, gpus=gpus, hint="set x to 1")
