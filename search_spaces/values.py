"""The plain values that a document is made of: text, numbers, true/false, null, lists, mappings.

What is not plain (a date, a set, an object) would not survive the database, so it is refused here.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping

Scalar = bool | int | float | str | None

MAX_DEPTH = 20
MAX_NUMBER = 1e100
MAX_WHOLE = 2**53


def plain(value: object, depth: int = MAX_DEPTH) -> object:
    """Return a copy made of plain lists, dicts and scalars only.

    Raises:
        ValueError: Something in it is not plain; the text says what.
    """
    if depth == 0:
        raise ValueError(f"is nested deeper than {MAX_DEPTH} levels.")
    if isinstance(value, Mapping):
        return {_key(key): plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth - 1) for item in value]
    return _plain_scalar(value)


def is_scalar(value: object) -> bool:
    """Return whether Optuna can store this value as a choice."""
    return value is None or isinstance(value, bool | int | float | str)


def same(one: object, other: object) -> bool:
    """Return whether two plain values are the same to a user: 8 is 8.0, but 1 is not true."""
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def number(value: object) -> float:
    """Return a number, also of text such as ``2e-5``, which some YAML loaders take for text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"must be a number, is {shown(value)}.")
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"must be a number, is {shown(value)}.") from None
    if not abs(parsed) <= MAX_NUMBER:
        raise ValueError(f"must be a number up to {MAX_NUMBER}, is {shown(value)}.")
    return parsed


def whole(value: object) -> int:
    """Return a whole number, also of text."""
    parsed = number(value)
    if not parsed.is_integer():
        raise ValueError(f"must be a whole number, is {shown(value)}. For others use type: float.")
    if abs(parsed) > MAX_WHOLE:
        raise ValueError(f"must be a whole number up to 2**53, is {shown(value)}.")
    return int(parsed)


def shown(value: object) -> str:
    """Return the value as an error message shows it: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    return _SHORT.repr(value)


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise ValueError(f"has the key {shown(key)}, which is not text. Put it in quotes.")
    return str(key)


def _plain_scalar(value: object) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        if value.bit_length() > 63:
            raise ValueError(f"holds {shown(value)}; numbers here have at most 63 bits.")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"holds {value}, which is not a finite number.")
        return float(value)
    raise ValueError(
        f"holds {shown(value)}, which is neither text, number, true/false, null, list nor mapping. "
        f"If text is meant, put it in quotes."
    )


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 80
