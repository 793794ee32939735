"""A trial goes on as if nothing had happened: resumed after any step, validated beside training."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.test_lora_trainer import Run
from tests.trainers.test_lora_validation import (
    HERE,
    HIGHEST_LOSS,
    A,
    Options,
    finish,
    run_one,
    told,
)


@pytest.fixture(scope="module")
def plain(fixed: Options) -> list[tuple[Any, ...]]:
    """What A reports alone, in turn, by its schedule."""
    return [told(report) for report in run_one(fixed)]


# Resuming

AFTER_5: Options = {"path": f"{HERE}:StopAfter", "step": 5}

RESUMED: dict[str, tuple[Options, Options]] = {
    "epoch": ({"eval_strategy": "epoch"}, {}),
    "no": ({"eval_strategy": "no"}, {}),
    "asked": ({"callbacks": [{"path": f"{HERE}:Ask", "at": [1, 3, 5]}]}, {}),
    "only asked": (
        {"eval_strategy": "no", "callbacks": [{"path": f"{HERE}:Ask", "at": [1, 4]}]},
        {},
    ),
    "stopped by a callback": ({"callbacks": [f"{HERE}:StopAfter"]}, {}),
    "stopped after a step": ({"callbacks": [AFTER_5]}, {}),
    "transformers": (
        {
            "callbacks": [
                {"path": "transformers:EarlyStoppingCallback", "early_stopping_patience": 2}
            ]
        },
        HIGHEST_LOSS,
    ),
    "growing": ({"eval_set": "growing", "val_size": 12, "eval_first_pass_samples": 2}, {}),
    "rotating": ({"eval_set": "rotating", "val_size": 12, "eval_max_samples": 5}, {}),
    "on start": ({}, {"eval_on_start": True}),
    "generating": ({"eval_metrics": ["length"], "max_new_tokens": 4}, {}),
    "best": (
        {},
        HIGHEST_LOSS,
    ),
    "patience": (
        {},
        {"early_stopping_patience": 2, "early_stopping_threshold": 9.0},
    ),
    "jumps": ({}, {"grad_norm_jump": 1.01, "eval_steps": 6}),
    "beside": ({"eval_async": True}, {"eval_steps": 1}),
    "beside, best": (
        {"eval_async": True},
        {**HIGHEST_LOSS, "early_stopping_patience": 3},
    ),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_trial_resumed_after_any_step_goes_on_as_if_nothing_had_happened(
    fixed: Options, name: str, tmp_path: Path
) -> None:
    """Each saved state goes on beside all the others."""
    shared, own = RESUMED[name]
    run = Run(fixed, **shared)
    run.add(0, {**A, **own})
    num_reported = []
    for number in range(20):
        if run.reports[0] and run.reports[0][-1].end is not None:
            break
        run.trainer.save(0, tmp_path / str(number))
        num_reported.append(len(run.reports[0]))
        run.advance(1)
    expected = [told(report) for report in run.reports[0]]
    assert expected[-1][-2] in ("finished", "stopped_early")
    assert len(num_reported) >= 3
    run.trainer.save(0, tmp_path / "end")
    run.trainer.remove(0)
    for number in range(len(num_reported)):
        run.add(100 + number, {**A, **own}, tmp_path / str(number))
    for _ in range(40):
        run.advance(1)
    for number, reported in enumerate(num_reported):
        reports = run.reports[100 + number]
        assert [told(report) for report in reports] == expected[reported:], number
    run.trainer.save(100, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(tmp_path / "end")


def weights(saved: Path) -> bytes:
    return (saved / "adapter" / "adapter_model.safetensors").read_bytes()


# Beside training


@pytest.mark.parametrize(
    "form", [{}, {"dtype": "float16"}, {"dtype": "bfloat16", "quantization_bit": 4}]
)
def test_beside_training_all_is_as_in_turn(fixed: Options, form: Options) -> None:
    in_turn = [told(report) for report in run_one(fixed, form)]
    run = Run(fixed, **form, eval_async=True)
    run.add(0, A)
    run.add(1, {**A, "seed": 3})
    assert run.trainer._engine._course._side is not None
    finish(run)
    assert [told(report) for report in run.reports[0]] == in_turn


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Validations beside training wait until it is set."""
    from trainers.lora.validation.side import SideValidator

    opened = threading.Event()
    healthy = SideValidator._validate

    def gated(self: SideValidator, *arguments: Any) -> Any:
        assert opened.wait(20)
        return healthy(self, *arguments)

    monkeypatch.setattr(SideValidator, "_validate", gated)
    yield opened
    opened.set()


def await_pending(run: Run, trial: int = 0) -> None:
    run.trainer._engine._course._pending[trial].found.result(20)


def test_training_goes_on_while_a_validation_is_under_way_and_waits_for_the_next(
    fixed: Options, plain: list[tuple[Any, ...]], gate: Any, tmp_path: Path
) -> None:
    run = Run(fixed, eval_async=True)
    run.add(0, A)
    run.add(1, {**A, "eval_steps": 50, "max_steps": 50})
    run.advance(7)
    trial = run.trainer._engine._trials[0]
    assert run.reports[0] == []
    assert trial.step == 4  # validates after 2 and 4, and waits for the first before it goes on
    assert run.trainer.step(0) == 2  # what a pause saves
    run.trainer.save(0, tmp_path / "pending")
    gate.set()
    await_pending(run)
    run.advance(1)
    (report,) = run.reports[0]
    assert (report.step, report.validation) == (2, 1)
    assert trial.step == 5
    assert run.trainer.step(0) == 2  # the report's step: checkpoint and report are one act
    run.trainer.save(0, tmp_path / "reported")
    finish(run)
    assert [told(report) for report in run.reports[0]] == plain
    run.trainer.remove(0)
    run.add(2, A, tmp_path / "pending")
    run.add(3, A, tmp_path / "reported")
    assert (run.trainer.step(2), run.trainer.step(3)) == (2, 2)
    finish(run, 2)
    finish(run, 3)
    assert [told(report) for report in run.reports[2]] == plain
    assert [told(report) for report in run.reports[3]] == plain[1:]
    assert weights(tmp_path / "pending") == weights(tmp_path / "reported")


def test_what_is_saved_pending_resumes_in_turn_too(
    fixed: Options, plain: list[tuple[Any, ...]], gate: Any, tmp_path: Path
) -> None:
    """A validation that is due but not made is made before any step."""
    run = Run(fixed, eval_async=True)
    run.add(0, A)
    run.advance(3)
    run.trainer.save(0, tmp_path / "pending")
    gate.set()
    run.trainer.remove(0)
    torch.set_num_threads(64)  # no core is spare
    other = Run(fixed, eval_async=True)
    torch.set_num_threads(1)
    assert other.trainer._engine._course._side is None
    other.add(0, A, tmp_path / "pending")
    other.advance(1)
    (report,) = other.reports[0]
    assert (report.step, other.trainer.step(0)) == (2, 2)
    assert any("no spare core" in note for note in report.notes)
    assert [told(r) for r in finish(other)] == plain


def test_steps_after_the_validation_that_ends_a_trial_are_undone(
    fixed: Options, gate: Any, tmp_path: Path
) -> None:
    ending = {"eval_target": 100.0}
    run = Run(fixed, eval_async=True)
    run.add(0, {**A, **ending})
    run.advance(3)
    assert run.trainer._engine._trials[0].step == 3
    gate.set()
    await_pending(run)
    run.advance(1)
    (report,) = run.reports[0]
    assert (report.step, report.end, run.trainer.step(0)) == (2, "stopped_early", 2)
    run.trainer.save(0, tmp_path / "beside")
    alone = Run(fixed)
    alone.add(0, {**A, **ending})
    alone.advance(2)
    alone.trainer.save(0, tmp_path / "in turn")
    assert weights(tmp_path / "beside") == weights(tmp_path / "in turn")
    assert told(report) == told(alone.reports[0][0])


def test_a_trial_may_leave_while_its_validation_is_under_way(
    fixed: Options, plain: list[tuple[Any, ...]], gate: Any
) -> None:
    run = Run(fixed, eval_async=True)
    for trial in (0, 1):
        run.add(trial, {**A, "seed": trial})
    run.advance(2)
    gate.set()
    run.trainer.remove(0)
    finish(run, 1)
    run.add(0, A)
    assert [told(report) for report in finish(run)] == plain


def test_an_error_beside_training_fails_that_trial(
    fixed: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.lora.validation.side import SideValidator

    healthy = SideValidator._validate

    def broken(self: SideValidator, key: int, *arguments: Any) -> Any:
        if key == 0:
            raise RuntimeError("the copy is broken")
        return healthy(self, key, *arguments)

    monkeypatch.setattr(SideValidator, "_validate", broken)
    run = Run(fixed, eval_async=True)
    run.add(0, A)
    run.add(1, A)
    assert "the copy is broken" in str(finish(run)[-1].message)
    assert finish(run, 1)[-1].end == "finished"


def test_the_copy_beside_training_shares_the_frozen_weights(fixed: Options) -> None:
    run = Run(fixed, eval_async=True)
    engine = run.trainer._engine
    side = engine._course._side
    assert side is not None
    copied = side._validator._passes._base.model
    assert copied is not engine._base.model
    own = {parameter.data_ptr() for parameter in engine._base.model.parameters()}
    assert {parameter.data_ptr() for parameter in copied.parameters()} == own
