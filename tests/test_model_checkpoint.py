"""Checkpoints: what is saved is what is loaded, byte for byte, and what is broken is said to be."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from personlab.errors import UserError
from personlab.model import checkpoint

CARD = {"backbone": "resnet18", "nested": {"b": [1, 2.5], "a": None}}


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "count": torch.tensor(7),
        "mean": torch.randn(2, 2, generator=generator, dtype=torch.float64),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "weights.safetensors"
    checkpoint.save(path, state(), CARD)
    return path


def test_round_trip(saved: Path) -> None:
    loaded, card = checkpoint.load(saved)
    assert card == CARD
    assert loaded.keys() == state().keys()
    for name, tensor in state().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["weights.json", "weights.safetensors"]


def test_same_content_same_bytes(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    shuffled = dict(reversed(state().items()))
    shuffled["conv.weight"] = shuffled["conv.weight"].to(memory_format=torch.channels_last)
    checkpoint.save(other, shuffled, dict(reversed(CARD.items())))
    assert other.read_bytes() == saved.read_bytes()
    assert other.with_suffix(".json").read_bytes() == saved.with_suffix(".json").read_bytes()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.safetensors: no such file"):
        checkpoint.load(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="a folder"):
        checkpoint.load(tmp_path)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state(), path)
    with pytest.raises(UserError, match="not a safetensors file"):
        checkpoint.load_weights(path)


def test_truncated_weights(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-4])
    with pytest.raises(UserError, match="not a safetensors file"):
        checkpoint.load(saved)


def test_missing_card(saved: Path) -> None:
    saved.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"weights\.json is missing"):
        checkpoint.load(saved)
    assert checkpoint.load_weights(saved).keys() == state().keys()


@pytest.mark.parametrize("text", ["{", '{"backbone": "resnet18"}', "[1]", "\x00"])
def test_broken_card(saved: Path, text: str) -> None:
    saved.with_suffix(".json").write_text(text)
    with pytest.raises(UserError, match=r"weights\.json: not"):
        checkpoint.load(saved)


def test_a_card_of_other_weights(saved: Path) -> None:
    card = saved.with_suffix(".json").read_bytes()
    checkpoint.save(saved, {"w": torch.ones(1)}, CARD)
    saved.with_suffix(".json").write_bytes(card)
    with pytest.raises(UserError, match=r"not the weights that weights\.json describes"):
        checkpoint.load(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(saved: Path, tmp_path: Path, value: float) -> None:
    before = saved.read_bytes()
    with pytest.raises(UserError, match="NaN or infinite: bad"):
        checkpoint.save(saved, {"good": torch.ones(2), "bad": torch.tensor([1.0, value])}, CARD)
    assert saved.read_bytes() == before
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(safetensors.torch.save({"bad": torch.tensor([1.0, value])}))
    with pytest.raises(UserError, match="NaN or infinite: bad"):
        checkpoint.load_weights(foreign)


def test_a_card_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path / "w.safetensors", state(), {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_the_card_is_json_for_people(saved: Path) -> None:
    text = saved.with_suffix(".json").read_text()
    assert json.loads(text)["nested"] == {"a": None, "b": [1, 2.5]}
    assert text.count("\n") > 5


def test_fit_loads_everything() -> None:
    module, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    other.weight.data.fill_(3.0)
    checkpoint.fit(module, other.state_dict(), Path("w"))
    assert torch.equal(module.weight, other.weight)


def test_fit_lets_the_batch_count_be_absent() -> None:
    module, given = nn.BatchNorm2d(3), nn.BatchNorm2d(3).state_dict()
    del given["num_batches_tracked"]
    checkpoint.fit(module, given, Path("w"))


def test_fit_names_what_does_not_fit() -> None:
    module = nn.Sequential(*(nn.Linear(2, 3) for _ in range(4)))
    given = module.state_dict()
    for index in range(4):
        del given[f"{index}.bias"]
    given["extra"] = torch.zeros(1)
    given["0.weight"] = torch.zeros(5, 2)
    before = module[1].weight.clone()
    given["1.weight"] = torch.zeros(3, 2)
    with pytest.raises(UserError) as caught:
        checkpoint.fit(module, given, Path("some.safetensors"))
    message = str(caught.value)
    assert "some.safetensors: the weights do not fit" in message
    assert "missing: 0.bias, 1.bias, 2.bias and 1 more" in message
    assert "unexpected: extra" in message
    assert "misshapen: 0.weight (5, 2) instead of (3, 2)" in message
    assert torch.equal(module[1].weight, before)
