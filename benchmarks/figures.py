"""A figure: what was measured in several repetitions, and the goal it is held against.

Shows figures as a table and keeps them in a JSON file. Measures nothing, and knows no benchmark.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from benchmarks.conditions import Conditions

DIGITS = 4
"""So many of a value's digits are shown and kept; a repetition differs in the third."""


@dataclass(frozen=True)
class Goal:
    """A limit that a figure is to keep."""

    limit: float
    is_least: bool

    def holds(self, value: float) -> bool:
        """Return whether a value keeps the limit; NaN keeps none."""
        return value >= self.limit if self.is_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'at least' if self.is_least else 'at most'} {self.limit:g}"


def at_least(limit: float) -> Goal:
    """Return the goal of not being below ``limit``."""
    return Goal(limit, is_least=True)


def at_most(limit: float) -> Goal:
    """Return the goal of not being above ``limit``."""
    return Goal(limit, is_least=False)


@dataclass(frozen=True)
class Figure:
    """One number of a benchmark.

    Attributes:
        name: What was measured, as it stands in the table.
        values: One for each repetition; at least one.
        goal: None for a number that is only shown beside others.
        note: What a reader has to know of it, as why it misses its goal.
    """

    name: str
    values: tuple[float, ...]
    goal: Goal | None = None
    note: str = ""

    def __post_init__(self) -> None:
        assert self.values, f"{self.name} was never measured"

    @property
    def value(self) -> float:
        """The median of the repetitions; NaN if one of them is."""
        if any(math.isnan(value) for value in self.values):
            return math.nan
        return statistics.median(self.values)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest of the repetitions."""
        return min(self.values), max(self.values)

    @property
    def is_reached(self) -> bool | None:
        """Whether the goal is kept; None without one."""
        return None if self.goal is None else self.goal.holds(self.value)


def ratio(
    name: str,
    above: Sequence[float],
    below: Sequence[float],
    goal: Goal | None = None,
    note: str = "",
) -> Figure:
    """Return the ratio of two measurements, taken repetition by repetition.

    What slows a machine down for a while slows both down, so that it leaves their ratio alone.
    """
    values = tuple(a / b for a, b in zip(above, below, strict=True))
    return Figure(name, values, goal, note)


def figures_table(title: str, figures: Sequence[Figure]) -> Table:
    """Return one row a figure, green where it keeps its goal."""
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("figure")
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("range", justify="right", no_wrap=True)
    table.add_column("goal", no_wrap=True)
    table.add_column("note", overflow="fold")
    styles = {True: "green", False: "bold red", None: ""}
    for figure in figures:
        low, high = figure.range
        goal = Text("" if figure.goal is None else str(figure.goal))
        table.add_row(
            Text(figure.name),
            Text(_shown(figure.value), style=styles[figure.is_reached]),
            f"{_shown(low)} .. {_shown(high)}" if len(figure.values) > 1 else "",
            goal.append("" if figure.is_reached is not False else " (missed)"),
            Text(figure.note),
        )
    return table


def write_figures(path: Path, part: str, figures: Sequence[Figure], conditions: Conditions) -> None:
    """Put a part's figures into a JSON file, in place of those that it had; keep the other parts.

    Args:
        path: Made with its folder if it is not there.
        part: Of the benchmark, as ``speed``: each may be run alone, at a commit of its own.
        figures: In the order of the table.
        conditions: Under which these were measured.
    """
    document = read_figures(path)
    rows = [_as_json(figure, conditions) for figure in figures]
    document[part] = {"conditions": asdict(conditions), "figures": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def read_figures(path: Path) -> dict[str, object]:
    """Return a JSON file of figures by their part; empty if there is none yet."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict), f"{path} holds no figures"
    return document


def _as_json(figure: Figure, conditions: Conditions) -> dict[str, object]:
    return {
        "name": figure.name,
        "value": _number(figure.value),
        "range": [_number(value) for value in figure.range],
        "goal": None if figure.goal is None else str(figure.goal),
        "reached": figure.is_reached,
        "repetitions": len(figure.values),
        "commit": conditions.commit + (" with changes" if conditions.is_dirty else ""),
        "note": figure.note,
    }


def _number(value: float) -> float | None:
    """Return a value as JSON has it: without NaN and infinity, and without digits of noise."""
    return float(_shown(value)) if math.isfinite(value) else None


def _shown(value: float) -> str:
    return f"{value:.{DIGITS}g}"
