"""Permanent errors end a Ray Train run; all others are retried."""

import errno
from pathlib import Path
from typing import Any

import pytest
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from personlab.distributed.board import fit, is_permanent, no_retry, watch
from personlab.errors import UserError


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (UserError("train.learning_rate is too high"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (RuntimeError("a node was lost"), False),
    ],
)
def test_is_permanent(error: Exception, permanent: bool) -> None:
    assert is_permanent(error) == permanent


@no_retry
def work(config: dict[str, Any]) -> None:
    with Path(config["tries"]).open("a") as tries:
        tries.write("once\n")
    raise UserError("train.learning_rate is too high")


@pytest.mark.slow
def test_a_permanent_error_is_not_retried(ray_local: None, tmp_path: Path) -> None:
    with watch(3, "train") as board:
        trainer = DataParallelTrainer(
            work,
            train_loop_config={"board": board, "tries": str(tmp_path / "tries")},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(
                name="fails", storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=2)
            ),
        )
        with pytest.raises(UserError, match="learning_rate is too high"):
            fit(trainer, board)
    assert (tmp_path / "tries").read_text() == "once\n"
