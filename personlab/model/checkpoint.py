"""Checkpoints: weights in a safetensors file, described by a JSON card beside it under the same name.

Nothing is ever unpickled. The card holds the SHA-256 of its weights, so that a pair that does not belong
together is refused. The same content gives the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from personlab import params
from personlab.errors import UserError, first
from personlab.utils.files import write_atomic, write_json

_DIGEST = "sha256"


def save(path: Path, state: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write weights to `path` (*.safetensors) and their card to the .json beside it, both atomically.

    Raises:
        UserError: a weight is not finite; nothing is written.
        ValueError: a number in the card is not finite; nothing is written.
    """
    _check_finite(state, path)
    # safetensors takes contiguous tensors only, and the memory layout must not show in the bytes
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    weights = safetensors.torch.save(plain)
    digest = hashlib.sha256(weights).hexdigest()
    write_json(path.with_suffix(".json"), {**card, _DIGEST: digest}, sort_keys=True)
    write_atomic(path, weights)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights and the card that `save` wrote.

    Raises:
        UserError: as `load_weights`; or the card is missing, is not JSON, or belongs to other weights.
    """
    content = _read(path)
    state = _tensors(content, path)
    sidecar = path.with_suffix(".json")
    try:
        card: Any = json.loads(sidecar.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: its card {sidecar.name} is missing; copy both files together") from None
    except ValueError as error:
        raise UserError(f"{sidecar}: not valid JSON: {error}") from None
    if not isinstance(card, dict) or _DIGEST not in card:
        raise UserError(f"{sidecar}: not a checkpoint's card (no '{_DIGEST}'); copy both files together")
    if card.pop(_DIGEST) != hashlib.sha256(content).hexdigest():
        raise UserError(f"{path}: not the weights that {sidecar.name} describes; copy both files together")
    return state, card


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of any safetensors file.

    Raises:
        UserError: no such file, not safetensors, or weights that are NaN or infinite.
    """
    return _tensors(_read(path), path)


def parameters(card: Mapping[str, Any], section: str, path: Path) -> params.Params:
    """The parameters in a card read from `path`, `section` among them; see `params.from_saved`.

    Raises:
        UserError: the card lacks the section, or a value is not of its key's type.
    """
    if not isinstance(card.get(section), dict):
        raise UserError(f"{path}: does not describe a network (no '{section}')")
    try:
        return params.from_saved(card)
    except ValidationError as error:
        raise UserError(f"{path}: does not describe a network: {params.reasons(error)}") from None


def fit(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load `state`, read from `path`, into `module`; names and shapes have to match.

    Only `num_batches_tracked` of batch normalisation may be missing, as in old torchvision files: it is not
    used with a fixed momentum.

    Raises:
        UserError: names are missing or unexpected, or shapes differ; the message lists the first of each.
    """
    own = module.state_dict()
    kinds = {
        "missing": [n for n in own if n not in state and not n.endswith("num_batches_tracked")],
        "unexpected": [n for n in state if n not in own],
        "misshapen": misshapen(own, state),
    }
    problems = [f"{kind}: {first(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise UserError(f"{path}: the weights do not fit this network; " + "; ".join(problems))
    module.load_state_dict({**own, **state})


def misshapen(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Names and shapes of the tensors in `state` that have another shape in `own`."""
    pairs = [(name, state[name].shape, own[name].shape) for name in own if name in state]
    return [
        f"{name} {tuple(found)} instead of {tuple(wanted)}"
        for name, found, wanted in pairs
        if found != wanted
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, not a safetensors file") from None


def _tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        state = dict(sorted(safetensors.torch.load(content).items()))  # loaded in random order
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path}: not a safetensors file ({error}); pickled weights (.pt, .pth) are never opened, "
            "convert them first"
        ) from None
    _check_finite(state, path)
    return state


def _check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise UserError(f"{path}: weights that are NaN or infinite: {first(bad)}")
