"""Two trees of values, parameters or scores, held beside each other name by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOTHING = "–"  # what is shown of a value that is not there


@dataclass(frozen=True)
class Difference:
    """One name; None where one side does not have it."""

    name: str
    before: Any
    now: Any

    @property
    def change(self) -> str:
        """Only where both are numbers."""
        if not (_is_number(self.before) and _is_number(self.now)):
            return NOTHING
        return "=" if self.now == self.before else f"{self.now - self.before:+.4g}"


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Every name of either, those of `now` first."""
    return [Difference(name, before.get(name), now.get(name)) for name in {**now, **before}]


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Only the names whose values are not equal."""
    return [each for each in compare(before, now) if each.before != each.now]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"keypoints": {"AP": 0.5}} as {"keypoints.AP": 0.5}, DVC's way of naming."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def shown(value: Any) -> Any:
    return NOTHING if value is None else round(value, 4) if isinstance(value, float) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
