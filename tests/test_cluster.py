"""What the stages share of Ray."""

from pathlib import Path
from typing import Any

import pytest
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from personlab.errors import UserError
from personlab.stages import cluster

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


@cluster.final
def hopeless(config: dict[str, Any]) -> None:
    with Path(config["tries"]).open("a") as tries:
        tries.write("once\n")
    raise UserError("train.learning_rate is too high")


def test_what_a_user_has_to_mend_is_not_tried_again(ray_local: None, tmp_path: Path) -> None:
    with cluster.watch(3, "hopeless") as board:
        trainer = TorchTrainer(
            hopeless,
            train_loop_config={"board": board, "tries": str(tmp_path / "tries")},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(
                name="hopeless", storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=2)
            ),
        )
        with pytest.raises(UserError, match="learning_rate is too high"):
            cluster.fit(trainer, board)
    assert (tmp_path / "tries").read_text() == "once\n"
