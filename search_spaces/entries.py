"""What every entry of `space` has in common: the base classes of the parameter kinds.

An entry is read by pydantic (keys and their types); what keys mean together is checked by `faults`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, WithJsonSchema

from search_spaces.problems import Path
from search_spaces.values import Scalar, number, shown, whole

MAX_GRID = 1_000_000

Fault = tuple[Path, str]
"""A path below the entry, and what is wrong there."""


def _when(value: object) -> object:
    if value is not None and not isinstance(value, str):
        raise ValueError(
            f'must be an expression in quotes, as in "lora_r >= 32"; is {shown(value)}.'
        )
    return value


def _grid_of(point: Callable[[object], float]) -> Callable[[object], object]:
    def read(value: object) -> object:
        if value is None:
            return None
        if isinstance(value, list | tuple):
            if not value:
                raise ValueError("must hold at least one point.")
            return tuple(point(item) for item in value)
        size = whole(value)
        if not 2 <= size <= MAX_GRID:
            raise ValueError(f"must be a list of points, or their number from 2 up; is {size}.")
        return size

    return read


_NUMBER_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "number"},
        {"type": "string", "pattern": r"^[-+]?[0-9.]+([eE][-+]?[0-9]+)?$"},
    ]
}
_GRID_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": 2, "maximum": MAX_GRID},
        {"type": "array", "items": _NUMBER_SCHEMA, "minItems": 1},
        {"type": "null"},
    ]
}

Number = Annotated[float, BeforeValidator(number), WithJsonSchema(_NUMBER_SCHEMA)]
Whole = Annotated[int, BeforeValidator(whole), WithJsonSchema(_NUMBER_SCHEMA)]
FloatGrid = Annotated[
    int | tuple[float, ...] | None,
    BeforeValidator(_grid_of(number)),
    WithJsonSchema(_GRID_SCHEMA),
]
IntGrid = Annotated[
    int | tuple[int, ...] | None,
    BeforeValidator(_grid_of(whole)),
    WithJsonSchema(_GRID_SCHEMA),
]
Switch = StrictBool
When = Annotated[
    str | None,
    BeforeValidator(_when),
    Field(description="The parameter exists only where this expression is true."),
]


class Entry(BaseModel):
    """One entry of `space`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: When = None

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with keys that are each of the right type."""
        yield from ()


class Searched(Entry):
    """A parameter that a sampler draws.

    Its *stored* value is what Optuna keeps, its *value* is what the trainer gets, and expressions
    read it as *seen*. They differ only for choices that have names.
    """

    def distribution(self) -> BaseDistribution:
        """Return the range as Optuna names it."""
        raise NotImplementedError

    def suggest(self, trial: BaseTrial, name: str) -> Scalar:
        """Draw a stored value."""
        raise NotImplementedError

    def points(self) -> Sequence[Scalar] | None:
        """Return every stored value that can be drawn, or None if they are not countable."""
        raise NotImplementedError

    def grid_points(self) -> Sequence[Scalar] | None:
        """Return the stored values that a grid search visits, or None if there is no grid."""
        return self.points()

    def probe_points(self) -> Sequence[Scalar]:
        """Return some or all stored values, to try expressions on."""
        raise NotImplementedError

    def stored(self, given: object) -> Scalar:
        """Return the stored value for a user's or a stored one; ValueError if it is not allowed."""
        raise NotImplementedError

    def seen(self, stored: Scalar) -> object:
        """Return what expressions read."""
        return stored

    def stored_from_value(self, value: object) -> Scalar:
        """Return the stored value whose value this is; ValueError if there is none."""
        return self.stored(value)
