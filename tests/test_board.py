"""What ends a Ray Train run."""

from pathlib import Path
from typing import Any

import pytest
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from personlab.distributed.board import fit, no_retry, watch
from personlab.errors import UserError

pytestmark = pytest.mark.slow


@no_retry
def hopeless(config: dict[str, Any]) -> None:
    with Path(config["tries"]).open("a") as tries:
        tries.write("once\n")
    raise UserError("train.learning_rate is too high")


def test_what_a_user_has_to_mend_is_not_tried_again(ray_local: None, tmp_path: Path) -> None:
    with watch(3, "hopeless") as board:
        trainer = TorchTrainer(
            hopeless,
            train_loop_config={"board": board, "tries": str(tmp_path / "tries")},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(
                name="hopeless", storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=2)
            ),
        )
        with pytest.raises(UserError, match="learning_rate is too high"):
            fit(trainer, board)
    assert (tmp_path / "tries").read_text() == "once\n"
