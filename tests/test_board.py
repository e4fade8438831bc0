"""Permanent errors end a Ray Train run; all others are retried."""

import errno
from typing import Any
from unittest.mock import Mock

import pytest

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


@pytest.mark.slow
def test_a_permanent_error_is_not_retried(ray_local: None) -> None:
    """tests/test_stage_train_faults.py has Ray Train, which starts the workers again."""
    tries = []

    @no_retry
    def work(config: dict[str, Any]) -> None:
        tries.append("once")
        raise UserError("train.learning_rate is too high")

    with watch(3, "train") as board:
        with pytest.raises(UserError, match="learning_rate is too high"):
            work({"board": board})
        retrying = Mock(fit=lambda: work({"board": board}))
        with pytest.raises(UserError, match="learning_rate is too high"):
            fit(retrying, board)
    assert tries == ["once"]
