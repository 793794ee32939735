"""A trial's log: every step once, also after a crash."""

from __future__ import annotations

import time
from pathlib import Path

from hpo import trial_log
from trainers.protocol import Report


def report(validation: int, steps: range, mark: str) -> Report:
    lines = [{"step": step, "mark": mark} for step in steps]
    return Report(0, validation, steps[-1], {"eval_loss": 1.0}, lines)


def marks(folder: Path) -> list[tuple[object, object]]:
    return [
        (line["step"], line["mark"]) for line in trial_log.read(folder) if line["kind"] == "step"
    ]


def test_every_step_and_validation_is_one_line(tmp_path: Path) -> None:
    trial_log.append(tmp_path, report(1, range(1, 4), "a"), "goes on")
    trial_log.append(tmp_path, report(2, range(4, 7), "a"), "finished")
    kinds = [line["kind"] for line in trial_log.read(tmp_path)]
    assert kinds == ["step"] * 3 + ["validation"] + ["step"] * 3 + ["validation"]


def test_steps_that_are_trained_again_replace_their_lines(tmp_path: Path) -> None:
    trial_log.append(tmp_path, report(1, range(1, 4), "a"), "goes on")
    trial_log.append(tmp_path, report(2, range(4, 7), "a"), "goes on")
    trial_log.append(tmp_path, report(2, range(4, 7), "b"), "goes on")
    assert marks(tmp_path) == [(s, "a") for s in (1, 2, 3)] + [(s, "b") for s in (4, 5, 6)]


def test_steps_of_a_log_that_ends_in_a_long_line_are_replaced(tmp_path: Path) -> None:
    trial_log.append(tmp_path, report(1, range(1, 4), "a"), "goes on")
    trial_log.append(tmp_path, report(2, range(4, 7), "a" * trial_log.TAIL_BYTES), "goes on")
    trial_log.append_loss(tmp_path, 6, "lost", "x" * 2 * trial_log.TAIL_BYTES)
    trial_log.append(tmp_path, report(2, range(4, 7), "b"), "goes on")
    assert marks(tmp_path) == [(s, "a") for s in (1, 2, 3)] + [(s, "b") for s in (4, 5, 6)]
    assert [x["cause"] for x in trial_log.read(tmp_path) if x["kind"] == "lost"] == ["lost"]


def test_a_report_costs_no_more_for_the_steps_before_it(tmp_path: Path) -> None:
    trial_log.append(tmp_path, report(1, range(1, 20_001), "a"), "goes on")
    took = {}
    for size, folder in ((20_000, tmp_path), (0, tmp_path / "fresh")):
        each = []
        for index in range(20):
            first = size + 1 + index
            began = time.perf_counter()
            trial_log.append(folder, report(2 + index, range(first, first + 1), "a"), "goes on")
            each.append(time.perf_counter() - began)
        took[size] = min(each)
    assert took[20_000] < 5 * took[0]


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    trial_log.append(tmp_path, report(1, range(1, 4), "a"), "goes on")
    path = tmp_path / trial_log.LOG_FILE
    path.write_text(path.read_text()[:-10])
    assert marks(tmp_path) == [(s, "a") for s in (1, 2, 3)]


def test_an_end_without_a_validation_keeps_what_was_before(tmp_path: Path) -> None:
    trial_log.append(tmp_path, report(1, range(1, 4), "a"), "goes on")
    end = Report(0, 1, 3, end="diverged", message="loss is nan")
    trial_log.append(tmp_path, end, "diverged")
    lines = trial_log.read(tmp_path)
    assert [line["kind"] for line in lines][-3:] == ["validation", "end", "message"]
    assert lines[-1]["text"] == "loss is nan"
