"""The mean of initial and fine-tuned weights, which forgets less than fine-tuned weights alone.

After Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from personlab.errors import UserError, first
from personlab.model import checkpoint


def blend(initial: Path, trained: Mapping[str, Tensor], *, share: float) -> dict[str, Tensor]:
    """share * initial + (1 - share) * trained.

    Counts stay as trained.

    Args:
        initial: the checkpoint that the training started from.

    Raises:
        UserError: it cannot be read, or has no such weights: with other heads, or a backbone alone.
    """
    start = checkpoint.load_weights(initial)
    mean = {name for name, tensor in trained.items() if tensor.is_floating_point()}
    if missing := sorted(
        name for name in mean if name not in start or start[name].shape != trained[name].shape
    ):
        raise UserError(
            f"{initial}: cannot be averaged with the trained weights (export.initial_share), which began "
            f"with random ones for {first(missing)}"
        )
    return {
        name: torch.lerp(tensor, start[name], share) if name in mean else tensor
        for name, tensor in trained.items()
    }
