"""What a figure says of its repetitions, and what is kept of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.conditions import Conditions, find_conditions
from benchmarks.figures import (
    Figure,
    Goal,
    at_least,
    at_most,
    figures_table,
    ratio,
    read_figures,
    write_figures,
)
from hpo.cli.console import stdout

CONDITIONS = Conditions("abc", False, 2, "a processor", 2, {"torch": "2"})


def test_a_figure_is_the_median_of_its_repetitions_with_their_range() -> None:
    figure = Figure("f", (5.0, 1.0, 2.0, 9.0, 3.0))
    assert (figure.value, figure.range) == (3.0, (1.0, 9.0))


@pytest.mark.parametrize(
    ("goal", "is_reached"),
    [(at_least(2.0), True), (at_least(2.1), False), (at_most(2.0), True), (at_most(1.9), False)],
)
def test_a_goal_is_held_against_the_median(goal: Goal, is_reached: bool) -> None:
    assert Figure("f", (1.0, 2.0, 30.0), goal).is_reached is is_reached


def test_without_a_goal_none_is_reached_or_missed() -> None:
    assert Figure("f", (1.0,)).is_reached is None


@pytest.mark.parametrize("goal", [at_least(0.0), at_most(1e9)])
def test_nan_reaches_no_goal(goal: Goal) -> None:
    figure = Figure("f", (1.0, math.nan, 2.0), goal)
    assert math.isnan(figure.value)
    assert figure.is_reached is False


def test_a_ratio_is_taken_round_by_round() -> None:
    """A round in which the machine is ten times as slow leaves the ratio alone."""
    assert ratio("r", [2.0, 20.0, 2.0], [1.0, 10.0, 1.0]).values == (2.0, 2.0, 2.0)


def test_each_part_is_kept_with_its_own_commit(tmp_path: Path) -> None:
    path = tmp_path / "results" / "packing.json"
    write_figures(path, "speed", [Figure("old", (1.0,))], CONDITIONS)
    write_figures(path, "memory", [Figure("m", (1.0,))], CONDITIONS)
    later = Conditions("def", True, 2, "a processor", 2, {})
    write_figures(path, "speed", [Figure("new", (1.0, 4.0, 3.0), at_least(3.5), "why")], later)
    document = json.loads(path.read_text())
    assert document == read_figures(path)
    assert document["memory"]["figures"][0]["commit"] == "abc"
    assert document["speed"]["figures"] == [
        {
            "name": "new",
            "value": 3.0,
            "range": [1.0, 4.0],
            "goal": "at least 3.5",
            "reached": False,
            "repetitions": 3,
            "commit": "def with changes",
            "note": "why",
        }
    ]
    assert document["memory"]["conditions"]["versions"] == {"torch": "2"}


def test_what_is_no_number_is_written_as_json_that_every_program_reads(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    write_figures(path, "p", [Figure("f", (math.inf,), at_most(1.0))], CONDITIONS)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    row = json.loads(path.read_text(), parse_constant=refuse)["p"]["figures"][0]
    assert (row["value"], row["reached"]) == (None, False)


def test_the_table_says_what_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    figures = [
        Figure("[kept]", (2.0, 2.5, 3.0), at_least(2.0)),
        Figure("missed", (1.0,), at_least(2.0), "[why]"),
    ]
    with stdout.capture() as captured:
        stdout.print(figures_table("speed", figures))
    kept, missed = (line for line in captured.get().splitlines() if "at least" in line)
    assert "[kept]" in kept
    assert "2 .. 3" in kept
    assert "missed)" not in kept
    assert "(missed)" in missed
    assert "[why]" in missed


def test_the_conditions_name_the_commit_and_the_versions() -> None:
    found = find_conditions(threads=3)
    assert found.threads == 3
    assert found.commit
    assert {"python", "torch", "peft"} <= found.versions.keys()
