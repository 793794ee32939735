"""Every reported value by validation, in order: how many trials were better at a rung, at once.

Derived from stored reports, one trial at a time; holds nothing that they do not say.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Mapping

from optuna.trial import FrozenTrial


class Rungs:
    """Values of comparable trials: all of a study's, or those of one bracket of it."""

    def __init__(self, bracket_of: Callable[[int], int]) -> None:
        """Know no trial yet.

        Args:
            bracket_of: Number of a trial -> its bracket; only trials of one bracket are compared.
        """
        self._bracket_of = bracket_of
        self._values: dict[tuple[int, int], list[float]] = defaultdict(list)
        self._known: dict[int, Mapping[int, float]] = {}

    def see(self, trial: FrozenTrial) -> None:
        """Take a trial's reports as they are now; an infeasible one competes with nobody."""
        values: dict[int, float] = {}
        if not is_infeasible(trial):
            values = {k: v for k, v in trial.intermediate_values.items() if not math.isnan(v)}
        before = self._known.get(trial.number, {})
        bracket = self._bracket_of(trial.number)
        for validation, value in before.items():
            if validation not in values or values[validation] != value:
                rung = self._values[bracket, validation]
                del rung[bisect_left(rung, value)]
        for validation, value in values.items():
            if before.get(validation) != value:
                insort(self._values[bracket, validation], value)
        self._known[trial.number] = values

    def place(
        self, number: int, validation: int, value: float, *, minimize: bool
    ) -> tuple[int, int]:
        """Return how many trials were better at a validation, and how many were there at all.

        Args:
            number: Of the trial that reached it, which is among them.
            validation: Index of the validation.
            value: The trial's own.
            minimize: Whether smaller is better.
        """
        rung = self._values[self._bracket_of(number), validation]
        better = bisect_left(rung, value) if minimize else len(rung) - bisect_right(rung, value)
        return better, len(rung)


def is_infeasible(trial: FrozenTrial) -> bool:
    """Return whether a trial was told with a constraint that it breaks."""
    return any(value > 0 for value in trial.constraints.values())
