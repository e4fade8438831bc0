"""What the stages share of Ray."""

import pytest

from personlab.distributed import cluster
from personlab.errors import UserError

pytestmark = pytest.mark.slow


def test_what_there_is_may_be_wanted(ray_local: None) -> None:
    cluster.require(1, cpus=cluster.node_cpus(), gpus=0, mend="")
    cluster.require(2 * cluster.node_cpus(), cpus=0.5, gpus=0, mend="")


@pytest.mark.parametrize(("workers", "cpus", "gpus"), [(10**6, 0.5, 0), (1, 10**6, 0), (1, 0, 10**6)])
def test_what_there_is_no_place_for_is_refused(ray_local: None, workers: int, cpus: float, gpus: int) -> None:
    """Rather than waited for."""
    there = rf"Ray has places for \d+ \({cluster.node_cpus()} CPUs and \d+ GPUs on 1 nodes\)"
    with pytest.raises(UserError, match=rf"{workers} workers with .* {there}; set x to 1, or start more"):
        cluster.require(workers, cpus=cpus, gpus=gpus, mend="set x to 1")
