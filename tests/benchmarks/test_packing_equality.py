"""Eight trials that differ in everything go the same way in a pack, on the tiny model."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.packing.course import Course
from benchmarks.packing.equality import course_figures
from benchmarks.packing.guests import GUESTS, SCHEDULE
from trainers.protocol import Report


def test_trials_in_changing_packs_are_bit_equal_to_the_same_ones_alone(
    model: str, train_file: Path
) -> None:
    fixed: dict[str, object] = {
        "model_name_or_path": model,
        "train_file": str(train_file),
        "val_size": 4,
        "max_length": 64,
        "dtype": "float32",
        **SCHEDULE,
    }
    figures = course_figures(fixed, GUESTS, lambda message: None)
    goals = [figure for figure in figures if figure.goal is not None]
    assert len(goals) == 3  # in a pack, resumed in others, and one that diverges
    assert [figure.name for figure in goals if not figure.is_reached] == []
    assert {figure.value for figure in figures if "difference" in figure.name} == {0.0}


def course(loss: float, end: str | None = None) -> Course:
    found = Course()
    lines = ({"step": 1, "loss": loss, "grad_norm": 1.0, "seconds": loss},)
    metrics = {"eval_loss": 1.0, "eval_runtime": loss}
    found.add(Report(0, 1, 1, metrics, lines, end=end))  # type: ignore[arg-type]
    return found


def test_a_difference_in_the_last_bit_is_seen() -> None:
    differing = course(2.0).difference(course(math.nextafter(2.0, 3.0)))
    assert 0.0 < differing < 1e-15


def test_times_are_no_difference() -> None:
    slow, quick = course(2.0), course(2.0)
    slow.add(Report(0, 1, 1, {"eval_loss": 1.0, "eval_runtime": 99.0}))
    assert slow.difference(quick) == 0.0


def test_another_end_or_a_missing_step_is_no_small_difference() -> None:
    assert course(2.0).difference(course(2.0, "finished")) == math.inf
    assert Course().difference(course(2.0)) == math.inf


def test_nan_here_and_a_number_there_is_no_small_difference() -> None:
    assert course(math.nan).difference(course(2.0)) == math.inf
