"""The mean of initial and trained weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from personlab.errors import UserError
from personlab.model import checkpoint
from personlab.model.blend import blend

TRAINED = {
    "backbone.weight": torch.full((2,), 4.0),
    "backbone.num_batches_tracked": torch.tensor(7),
    "heads.short.weight": torch.full((3,), 8.0),
}
INITIAL = {
    "backbone.weight": torch.full((2,), 2.0),
    "backbone.num_batches_tracked": torch.tensor(3),
    "heads.short.weight": torch.full((3,), 0.0),
}


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    path = folder / "initial.safetensors"
    checkpoint.save(path, state, {})
    return path


@pytest.mark.parametrize(("share", "backbone", "head"), [(0.0, 4, 8), (0.25, 3.5, 6), (1.0, 2, 0)])
def test_it_lies_between_them(tmp_path: Path, share: float, backbone: float, head: float) -> None:
    mean = blend(saved(tmp_path, INITIAL), TRAINED, share=share)
    assert mean["backbone.weight"].tolist() == [backbone] * 2
    assert mean["heads.short.weight"].tolist() == [head] * 3
    assert mean["backbone.num_batches_tracked"].item() == 7


@pytest.mark.parametrize("heads", [None, torch.zeros(5)], ids=["backbone alone", "other keypoints"])
def test_random_weights_are_not_averaged_with(tmp_path: Path, heads: Tensor | None) -> None:
    initial = {name: tensor for name, tensor in INITIAL.items() if "heads" not in name}
    if heads is not None:
        initial["heads.short.weight"] = heads
    path = saved(tmp_path, initial)
    with pytest.raises(UserError, match=rf"{path}: .*began with random ones for heads\.short\.weight"):
        blend(path, TRAINED, share=0.5)
