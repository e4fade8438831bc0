"""Checked access to the fields of JSON records."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class BadRecordError(Exception):
    """A record is rejected; the message is the reason."""


def whole(value: Any) -> int | None:
    """A whole number, also one written as a float (139.0, as pandas does) or as a string of digits; None for
    any other value."""
    if type(value) is str and value.isascii() and value.isdigit() and len(value) <= 19:
        return int(value)
    if type(value) is float and value.is_integer() and abs(value) <= 2**53:  # larger ones are rounded
        return int(value)
    return value if type(value) is int else None


def record_id(record: Any) -> int | None:
    """The record's id; None if it has none that is a whole number."""
    return whole(record.get("id")) if isinstance(record, dict) else None


def shown(value: Any) -> str:
    """A value as JSON, cut off after 40 characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def integer(record: Any, key: str, low: int, high: int) -> int:
    """Get a field that must be a whole number in [low, high)."""
    if not isinstance(record, dict):
        raise BadRecordError("is not an object")
    if key not in record:
        raise BadRecordError(f"has no {key}")
    value = whole(record[key])
    if value is None or not low <= value < high:
        raise BadRecordError(f"{key} is {shown(record[key])}, not a whole number from {low} up")
    return value


def number(record: Any, key: str) -> float:
    """A field that is a finite number."""
    if key not in record:
        raise BadRecordError(f"has no {key}")
    if type(record[key]) not in (int, float):
        raise BadRecordError(f"{key} is {shown(record[key])}, not a number")
    return float(numbers([record[key]], key)[0])


def numbers(value: Any, what: str) -> npt.NDArray[np.float64]:
    """Convert a value that must be a list of finite numbers."""
    if not isinstance(value, list) or not all(type(number) in (int, float) for number in value):
        raise BadRecordError(f"{what} is {shown(value)}, not a list of numbers")
    try:
        array = np.array(value, dtype=np.float64)
    except OverflowError:
        raise BadRecordError(f"{what} holds a number that is too large") from None
    if not np.isfinite(array).all():
        raise BadRecordError(f"{what} holds a number that is not finite")
    return array


def repeated(records: Sequence[Any]) -> dict[int, str]:
    """Reasons to reject records with repeated ids, by position.

    Of equal ids, all records but the first are rejected. All are rejected if they name different files,
    because the image that people of this id belong to is then unknown.
    """
    groups = defaultdict[int | None, list[int]](list)
    for position, record in enumerate(records):
        groups[record_id(record)].append(position)
    groups.pop(None, None)
    repeats = dict[int, str]()
    for shared_id, positions in groups.items():
        files = {str(records[position].get("file_name")) for position in positions}
        if len(files) > 1:
            repeats |= dict.fromkeys(positions, f"id {shared_id} stands for {len(files)} different files")
        else:
            repeats |= dict.fromkeys(positions[1:], f"id {shared_id} was used before")
    return repeats
