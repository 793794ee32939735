"""A trial's log as series of numbers over optimizer steps. Nothing is drawn here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import pandas as pd

from hpo import trial_log


@dataclass(frozen=True)
class Curves:
    """What a log holds.

    Attributes:
        steps: A row for each optimizer step, a column for each quantity.
        validations: A row for each validation, likewise.
    """

    steps: pd.DataFrame
    validations: pd.DataFrame

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return self.steps.empty and self.validations.empty

    def of_steps(self, name: str) -> pd.Series:
        """Return a quantity of every step, by step; not finite where it is not."""
        return _column(self.steps, name)

    def of_validations(self, name: str) -> pd.Series:
        """Return a metric of every validation, by step."""
        return _column(self.validations, name)


def read_curves(log_folder: Path) -> Curves:
    """Read a trial's log; what is missing is empty."""
    lines = trial_log.read(log_folder)
    return Curves(_table(lines, "step"), _table(lines, "validation"))


def smoothed(series: pd.Series, weight: float) -> pd.Series:
    """Return the exponential moving average that TensorBoard draws, passing over what is not finite.

    Args:
        series: By step.
        weight: Of the past, from 0 to below 1.
    """
    finite = series.where(series.map(math.isfinite))
    return finite.ewm(alpha=1 - weight, adjust=True, ignore_na=True).mean()


def _table(lines: Iterable[Mapping[str, object]], kind: str) -> pd.DataFrame:
    rows: dict[int, dict[str, float]] = {}
    for line in lines:
        step = line.get("step")
        if line.get("kind") == kind and isinstance(step, int):
            numbers = {name: float(value) for name, value in line.items() if _is_number(value)}
            rows.setdefault(step, {}).update(numbers)
    return pd.DataFrame.from_dict(rows, orient="index").sort_index()


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    if name not in table:
        return pd.Series(dtype=float)
    return table[name].astype(float)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
