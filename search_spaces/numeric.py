"""Numbers to search: `type: float` and `type: int`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal, overload

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from search_spaces.entries import (
    Fault,
    FloatGrid,
    IntGrid,
    Number,
    Searched,
    Switch,
    Whole,
)
from search_spaces.values import Scalar, number, shown, whole

# Optuna finds a point's index as (value - low) / step in floats and allows an error of 1e-8.
MIN_STEP_SHARE = 1e-6


class Steps(Sequence[float]):
    """The numbers low, low + step, ..., high, exact in decimals: 0.3, not 0.30000000000000004."""

    def __init__(self, low: float, high: float, step: float) -> None:
        self._low, self._step = _exact(low), _exact(step)
        self._num = int((_exact(high) - self._low) / self._step) + 1

    def __len__(self) -> int:
        return self._num

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[float]: ...
    def __getitem__(self, index: int | slice) -> float | Sequence[float]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._num))]
        if not -self._num <= index < self._num:
            raise IndexError(index)
        return float(self._low + index % self._num * self._step)

    def nearest(self, value: float) -> float:
        """Return the step nearest to a value."""
        return self[min(max(round((_exact(value) - self._low) / self._step), 0), self._num - 1)]

    def holds(self, value: float) -> bool:
        """Return whether a value is a step, up to the rounding of floats."""
        return abs(_exact(self.nearest(value)) - _exact(value)) <= self._step / 10**6


class FloatParameter(Searched):
    """A real number from `low` to `high`, both included."""

    type: Literal["float"]
    low: Number
    high: Number
    log: Switch = False
    step: Number | None = None
    grid: FloatGrid = None

    def faults(self) -> Iterator[Fault]:
        found = [*_range_faults(self.low, self.high, self.log), *self._step_faults()]
        yield from found
        if not found:
            yield from _grid_faults(self, self.grid, self.grid_points() or ())

    def distribution(self) -> FloatDistribution:
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def suggest(self, trial: BaseTrial, name: str) -> Scalar:
        drawn = trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)
        return self.stored(drawn)

    def points(self) -> Sequence[float] | None:
        if self.step is not None:
            return Steps(self.low, self.high, self.step)
        return (self.low,) if self.low == self.high else None

    def grid_points(self) -> Sequence[float] | None:
        if self.grid is None:
            return self.points()
        if not isinstance(self.grid, int):
            return self.grid
        spaced = _spaced(self.low, self.high, self.grid, self.log)
        if self.step is None:
            return tuple(spaced)
        steps = Steps(self.low, self.high, self.step)
        return tuple(dict.fromkeys(steps.nearest(point) for point in spaced))

    def probe_points(self) -> Sequence[Scalar]:
        points = self.points()
        return _spaced(self.low, self.high, 3, self.log) if points is None else points

    def stored(self, given: object) -> Scalar:
        value = _within(number(given), self.low, self.high)
        if self.step is None:
            return value
        steps = Steps(self.low, self.high, self.step)
        if not steps.holds(value):
            raise ValueError(_off_step(value, self.low, self.step, steps.nearest(value)))
        return steps.nearest(value)

    def _step_faults(self) -> Iterator[Fault]:
        if self.step is None:
            return
        if self.log:
            yield ("step",), "has no meaning with log: true. Remove one of the two."
        elif self.step <= 0:
            yield ("step",), f"must be above 0, is {self.step}."
        elif self.step < MIN_STEP_SHARE * max(abs(self.low), abs(self.high)):
            yield ("step",), f"{self.step} is too fine for this range. Leave it out."
        elif self.low <= self.high:
            yield from _high_faults(self.low, self.high, self.step)


class IntParameter(Searched):
    """A whole number from `low` to `high`, both included."""

    type: Literal["int"]
    low: Whole
    high: Whole
    log: Switch = False
    step: Whole = 1
    grid: IntGrid = None

    def faults(self) -> Iterator[Fault]:
        found = [*_range_faults(self.low, self.high, self.log), *self._step_faults()]
        yield from found
        if not found:
            yield from _grid_faults(self, self.grid, self.grid_points())

    def distribution(self) -> IntDistribution:
        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def suggest(self, trial: BaseTrial, name: str) -> Scalar:
        return trial.suggest_int(name, self.low, self.high, log=self.log, step=self.step)

    def points(self) -> Sequence[int]:
        return range(self.low, self.high + 1, self.step)

    def grid_points(self) -> Sequence[int]:
        if self.grid is None:
            return self.points()
        if not isinstance(self.grid, int):
            return self.grid
        spaced = _spaced(self.low, self.high, self.grid, self.log)
        nearest = (self.low + round((point - self.low) / self.step) * self.step for point in spaced)
        return tuple(dict.fromkeys(nearest))

    def probe_points(self) -> Sequence[Scalar]:
        return self.points()

    def stored(self, given: object) -> Scalar:
        value = whole(given)
        _within(value, self.low, self.high)
        below = (value - self.low) // self.step * self.step + self.low
        if below != value:
            raise ValueError(_off_step(value, self.low, self.step, below))
        return value

    def _step_faults(self) -> Iterator[Fault]:
        if self.step <= 0:
            yield ("step",), f"must be above 0, is {self.step}."
        elif self.log and self.step != 1:
            yield ("step",), "has no meaning with log: true. Remove one of the two."
        elif self.low <= self.high:
            yield from _high_faults(self.low, self.high, self.step)


def _exact(value: float) -> Fraction:
    return Fraction(repr(value))


def _range_faults(low: float, high: float, log: bool) -> Iterator[Fault]:
    if low > high:
        yield ("low",), f"low {low} is above high {high}. Swap them."
    if log and low <= 0:
        yield ("low",), f"must be above 0 with log: true, is {low}."


def _high_faults(low: float, high: float, step: float) -> Iterator[Fault]:
    steps = (_exact(high) - _exact(low)) / _exact(step)
    if steps.denominator != 1:
        below, above = (_exact(low) + k * _exact(step) for k in (int(steps), int(steps) + 1))
        as_given = int if isinstance(high, int) else float
        yield (
            ("high",),
            f"{high} is not low {low} plus a number of steps of {step}. "
            f"Nearest: {as_given(below)} and {as_given(above)}.",
        )


def _grid_faults(
    parameter: Searched, grid: int | tuple[float, ...] | None, points: Sequence[float]
) -> Iterator[Fault]:
    if isinstance(grid, int):
        if len(set(points)) < grid:
            yield (
                ("grid",),
                f"{grid} points asked for, but evenly spaced they fall on {len(set(points))} "
                f"different values. Give a smaller number, or list the points.",
            )
        return
    for index, point in enumerate(grid or ()):
        try:
            stored = parameter.stored(point)
        except ValueError as error:
            yield ("grid", index), str(error)
            continue
        if stored in points[:index]:
            yield ("grid", index), f"{shown(point)} is listed twice."


def _within(value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise ValueError(f"{value} is not in the range from {low} to {high}.")
    return value


def _off_step(value: float, low: float, step: float, near: float) -> str:
    return f"{value} is not low {low} plus a number of steps of {step}. Nearest: {near}."


def _spaced(low: float, high: float, num: int, log: bool) -> list[float]:
    """Return `num` numbers from low to high, evenly spaced, in the logarithm if `log`."""

    def inner(share: float) -> float:
        exact = low * (high / low) ** share if log else low + (high - low) * share
        return min(max(float(f"{exact:.12g}"), low), high)

    return [low, *(inner(i / (num - 1)) for i in range(1, num - 1)), high]
