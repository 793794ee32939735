"""How full the pack was, out of what a run says and its logs hold."""

from __future__ import annotations

import pytest

from benchmarks.packing.flow import (
    NUM_TRIALS,
    FlowError,
    mean_pack,
    steps_before_the_last_begins,
)


def lines_of(passes: list[int]) -> list[dict[str, object]]:
    """The lines that passes of so many trials leave."""
    return [{"kind": "step", "pack": size} for size in passes for _ in range(size)]


def test_the_mean_is_one_over_passes_and_not_over_their_lines() -> None:
    assert mean_pack(lines_of([8, 8, 8, 1])) == pytest.approx(25 / 4)


def test_a_line_without_the_size_of_its_pass_is_no_pass_of_one() -> None:
    with pytest.raises(FlowError, match="does not say how many trials"):
        mean_pack([{"kind": "step", "step": 1}])


def test_no_line_at_all_is_no_mean() -> None:
    with pytest.raises(FlowError, match="no step"):
        mean_pack([])


def said(events: list[str]) -> str:
    return "".join(f"[00:{second:02d}] {event}\n" for second, event in enumerate(events))


def test_only_reports_before_the_last_beginning_count() -> None:
    first = [f"trial {number} begins: learning_rate=1" for number in range(NUM_TRIALS - 1)]
    events = [
        *first,
        "trial 0 step 4: eval_loss 2.0",
        "trial 1 step 4: eval_loss 2.1 -> pruned",
        "trial 0 step 8: eval_loss 1.9",
        f"trial {NUM_TRIALS - 1} begins: learning_rate=1",
        "trial 0 step 12: eval_loss 1.8",
        "trial 2 step 4: eval_loss 1.8",
    ]
    assert steps_before_the_last_begins(said(events)) == {0: 8, 1: 4}


def test_a_study_that_did_not_begin_all_its_trials_is_refused() -> None:
    with pytest.raises(FlowError, match=f"1 of {NUM_TRIALS} trials began"):
        steps_before_the_last_begins(said(["trial 0 begins: learning_rate=1"]))
