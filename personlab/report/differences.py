"""Compare two trees of values, parameters or scores, name by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOTHING = "–"  # shown for a missing value


@dataclass(frozen=True)
class Difference:
    """The two values of a name; None where it is missing."""

    name: str
    before: Any
    now: Any

    @property
    def change(self) -> str:
        """The signed change of a number, "=" if there is none; NOTHING if a value is not a number."""
        if not (_is_number(self.before) and _is_number(self.now)):
            return NOTHING
        return "=" if self.now == self.before else f"{self.now - self.before:+.4g}"


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """All names of both, those of `now` first."""
    return [Difference(name, before.get(name), now.get(name)) for name in {**now, **before}]


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The names whose values differ."""
    return [each for each in compare(before, now) if each.before != each.now]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"keypoints": {"AP": 0.5}} as {"keypoints.AP": 0.5}, as DVC names values."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def shown(value: Any) -> Any:
    """A value for a table: floats to 4 digits, NOTHING for None."""
    return NOTHING if value is None else round(value, 4) if isinstance(value, float) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
