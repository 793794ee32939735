"""When, on what and how often a trial validates, and what follows: on a tiny model on the CPU."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from tests.trainers.conftest import WriteRows
from tests.trainers.test_lora_trainer import Run, timeless
from trainers.lora import LoraOptions
from trainers.lora.pack.packed_pass import PackedPass
from trainers.protocol import Report

Options = dict[str, object]

A: Options = {"learning_rate": 3e-3, "max_steps": 6, "eval_steps": 2, "lora_dropout": 0.1}
HERE = "tests.trainers.test_lora_validation"
ASK_AT_3: Options = {"path": f"{HERE}:Ask", "at": [3]}


HIGHEST_LOSS: Options = {
    "load_best_model_at_end": True,
    "greater_is_better": True,
    "eval_steps": 1,
}


class Ask(TrainerCallback):
    """Asks for validations after some steps."""

    def __init__(self, at: list[int]) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate |= state.global_step in self.at


class AskAtAnEpochsEnd(TrainerCallback):
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate = True


class StopAfter(TrainerCallback, ExportableState):
    """Stops the trial at its second validation or after a step."""

    def __init__(self, step: int | None = None) -> None:
        self.step, self.num_validations = step, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == self.step

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.num_validations += 1
        control.should_training_stop |= self.step is None and self.num_validations == 2

    def state(self) -> dict[str, Any]:
        return {
            "args": {"step": self.step},
            "attributes": {"num_validations": self.num_validations},
        }


class Breaks(TrainerCallback):
    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise RuntimeError("my callback is broken")


def told(report: Report) -> tuple[Any, ...]:
    lines = [timeless(line) for line in report.step_lines]
    message = report.message and report.message.split("\n")[0]
    metrics = timeless(report.metrics)
    return (report.validation, report.step, metrics, lines, report.samples, report.end, message)


def run_one(fixed: Options, shared: Options | None = None, **options: object) -> list[Report]:
    """Return all reports of one trial that has a trainer for itself."""
    run = Run(fixed, **(shared or {}))
    run.add(0, {**A, **options})
    return finish(run)


def finish(run: Run, trial: int = 0) -> list[Report]:
    for _ in range(40):
        run.advance(1)
        if run.reports[trial] and run.reports[trial][-1].end is not None:
            return run.reports[trial]
    raise AssertionError("the trial never ends")


def steps_of(reports: list[Report]) -> list[int]:
    return [report.step for report in reports]


def lines_of(reports: list[Report]) -> list[dict[str, object]]:
    return [dict(line) for report in reports for line in report.step_lines]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The examples of each forward pass that validates, as they are counted."""
    counted: list[int] = []
    healthy = PackedPass.measure

    def count(self: PackedPass, parts: Any) -> Any:
        counted.extend(len(part.rows.pieces) for part in parts)
        return healthy(self, parts)

    monkeypatch.setattr(PackedPass, "measure", count)
    return counted


@pytest.fixture(scope="module")
def plain(fixed: Options) -> list[tuple[Any, ...]]:
    """What A reports alone, in turn, by its schedule."""
    return [told(report) for report in run_one(fixed)]


# When


def test_epochs_validate_at_their_ends_and_at_the_last_step(fixed: Options) -> None:
    epoch = {"eval_strategy": "epoch"}
    assert steps_of(run_one(fixed, epoch, max_steps=12)) == [5, 10, 12]
    assert steps_of(run_one(fixed, epoch, max_steps=-1, num_train_epochs=2)) == [5, 10]


def test_the_models_mode_is_restored_also_when_a_validation_raises(
    fixed: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(fixed)
    run.add(0, A)
    run.add(1, A)
    healthy = PackedPass.measure

    def broken(self: PackedPass, parts: Any) -> Any:
        found = healthy(self, parts)
        if any(part.trial == 0 for part in parts):
            raise RuntimeError("no luck")
        return found

    monkeypatch.setattr(PackedPass, "measure", broken)
    model = run.trainer._engine._base.model
    model.train()
    run.advance(2)
    assert model.training
    assert run.reports[0][0].end == "failed"
    assert "no luck" in str(run.reports[0][0].message)
    assert run.reports[1][0].metrics["eval_loss"] > 0
    model.eval()
    engine = run.trainer._engine
    engine._course._measure(engine._trials[1])
    assert not model.training


def test_a_callbacks_validation_is_logged_but_no_report(
    fixed: Options, plain: list[tuple[Any, ...]]
) -> None:
    asked = run_one(fixed, {"callbacks": [ASK_AT_3]})
    extra = [line for line in lines_of(asked) if "extra_validation" in line]
    assert [(line["step"], line["extra_validation"]) for line in extra] == [(3, True)]
    assert {"eval_loss", "eval_token_accuracy", "epoch", "train_loss"} <= set(extra[0])
    assert [r.validation for r in asked] == [1, 2, 3]
    assert [told(r)[:3] for r in asked] == [r[:3] for r in plain]


def test_without_a_schedule_a_callbacks_validations_are_the_reports(fixed: Options) -> None:
    options = {"eval_strategy": "no", "callbacks": [{"path": f"{HERE}:Ask", "at": [1, 4]}]}
    reports = run_one(fixed, options)
    assert [(r.validation, r.step, r.end) for r in reports] == [
        (1, 1, None),
        (2, 4, None),
        (3, 6, "finished"),
    ]
    assert all("eval_loss" in report.metrics for report in reports)


def test_a_callback_may_ask_at_an_epochs_end(fixed: Options) -> None:
    options = {"eval_strategy": "no", "callbacks": [f"{HERE}:AskAtAnEpochsEnd"]}
    assert steps_of(run_one(fixed, options, max_steps=11)) == [5, 10, 11]


def test_the_validation_on_start_is_a_line_of_step_0(
    fixed: Options, plain: list[tuple[Any, ...]]
) -> None:
    run = Run(fixed)
    run.add(0, {**A, "eval_on_start": True})
    untuned = run.trainer.evaluate({**run.fixed, **A})["eval_loss"]
    reports = finish(run)
    first = reports[0].step_lines[0]
    assert (first["step"], first["epoch"], first["eval_loss"]) == (0, 0.0, untuned)
    assert "train_loss" not in first
    assert [r.validation for r in reports] == [1, 2, 3]
    assert [told(r)[2] for r in reports] == [r[2] for r in plain]


# On what


def test_a_growing_set_takes_all_at_the_last_and_computes_it_as_a_fixed_one(
    fixed: Options, measured: list[int]
) -> None:
    growing = {"eval_set": "growing", "val_size": 12, "per_device_eval_batch_size": 3}
    reports = run_one(fixed, growing)
    assert sum(measured) == 3 + 8 + 12  # shares 0.25, 0.625 and 1
    expected = run_one(fixed, {**growing, "eval_set": "fixed"})
    assert reports[-1].metrics["eval_loss"] == pytest.approx(
        expected[-1].metrics["eval_loss"], rel=1e-6
    )
    assert reports[0].metrics["eval_loss"] != expected[0].metrics["eval_loss"]


def test_a_rotating_set_takes_the_next_examples_each_time(
    fixed: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.lora.data.dataset import Dataset

    seen: list[int] = []
    healthy = Dataset.validation_examples

    def note(self: Dataset, indices: Any) -> Any:
        seen.extend(indices)
        return healthy(self, indices)

    monkeypatch.setattr(Dataset, "validation_examples", note)
    run_one(fixed, {"eval_set": "rotating", "val_size": 12, "eval_max_samples": 4})
    assert len(seen) == 12
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize("eval_set", ["growing", "rotating"])
def test_trials_of_other_seeds_validate_on_the_same_examples(fixed: Options, eval_set: str) -> None:
    """Trained with a learning rate of nearly nothing they have the same losses."""
    options = {"eval_set": eval_set, "val_size": 12, "eval_max_samples": 5}
    nothing: Options = {"learning_rate": 1e-30, "lora_dropout": 0.0}
    one, other = (run_one(fixed, options, **nothing, seed=seed) for seed in (1, 2))
    losses = [report.metrics["eval_loss"] for report in one]
    assert losses == [report.metrics["eval_loss"] for report in other]
    assert len(set(losses)) == 3


def test_several_validation_sets_have_metrics_of_their_own(
    fixed: Options, write_rows: WriteRows
) -> None:
    sets = {
        "short": write_rows({"prompt": "say ", "completion": "one"}, name="short.jsonl"),
        "long": write_rows({"prompt": "say ", "completion": "one two three"}, name="long.jsonl"),
    }
    given = {name: str(path) for name, path in sets.items()}
    shared = {"validation_file": given, "val_size": None}
    options = {"metric_for_best_model": "eval_long_loss"}
    metrics = run_one(fixed, shared, **options)[-1].metrics
    names = {f"eval_{name}_{what}" for name in sets for what in ("loss", "token_accuracy")}
    assert names <= set(metrics)
    told = LoraOptions.model_validate({**fixed, **shared, **options}).metric_names()
    assert told is not None
    assert names <= told
    low, high = sorted(metrics[f"eval_{name}_loss"] for name in sets)
    assert low < metrics["eval_loss"] < high


# Never twice


def test_a_step_validates_at_most_once(fixed: Options, measured: list[int]) -> None:
    """The schedule, a callback, an epoch's end, the first pass and the last step: one pass."""
    asking = [{"path": f"{HERE}:Ask", "at": [2, 5, 6]}, f"{HERE}:AskAtAnEpochsEnd"]
    shared = {"callbacks": asking, "eval_first_pass_samples": 3, "val_size": 9}
    reports = run_one(fixed, shared, eval_steps=1)
    assert len(reports) == 6
    assert sum(measured) == 6 * 9
    assert all("eval_first_pass_loss" in report.metrics for report in reports)


def test_the_same_weights_on_the_same_examples_are_computed_once(
    fixed: Options, measured: list[int]
) -> None:
    run = Run(fixed)
    run.add(0, A)
    engine = run.trainer._engine
    trial = engine._trials[0]
    first = engine._course._measure(trial)
    num_passes = len(measured)
    second = engine._course._measure(trial)
    assert num_passes == len(measured) > 0
    assert timeless(first.metrics) == timeless(second.metrics)
    run.advance(1)  # now the weights are others
    engine._course._measure(trial)
    assert len(measured) == 2 * num_passes


def test_a_bad_first_pass_spares_the_rest(fixed: Options, measured: list[int]) -> None:
    run = Run(fixed, val_size=12, eval_first_pass_samples=2)
    run.add(0, A)
    run.advance(1)
    run.trainer._engine._trials[0].max_loss = 1.0
    engine = run.trainer._engine
    found = engine._course._measure(engine._trials[0])
    assert sum(measured) == 2
    assert "on the first 2 examples" in str(found.diverged)
    report = engine._course._take_in(engine._trials[0], found)
    assert report is not None
    assert (report.end, report.metrics) == ("diverged", {})


# Without validation


def test_do_eval_false_needs_no_validation_data_and_keeps_the_logs_form(
    fixed: Options, measured: list[int], tmp_path: Path
) -> None:
    run = Run({**fixed, "val_size": None}, eval_strategy="no")
    run.add(0, A)
    reports = finish(run)
    assert [(r.validation, r.step) for r in reports] == [(1, 2), (2, 4), (3, 6)]
    for report in reports:
        assert set(report.metrics) == {"epoch", "train_loss"}
        losses = [float(str(line["loss"])) for line in report.step_lines]
        assert report.metrics["train_loss"] == sum(losses) / 2
    assert measured == []
    run.trainer.save(0, tmp_path / "saved")
    with pytest.raises(ValueError, match="nothing to validate on"):
        run.trainer.evaluate({**run.fixed, **A}, tmp_path / "saved" / "adapter")


def test_validation_data_that_is_not_used_is_said(fixed: Options) -> None:
    reports = run_one(fixed, {"eval_strategy": "no"})
    assert any("4 validation examples are not trained on" in note for note in reports[0].notes)


def test_a_callback_that_asks_without_validation_data_fails(fixed: Options) -> None:
    (*_, report) = run_one(
        {**fixed, "val_size": None}, {"eval_strategy": "no", "callbacks": [ASK_AT_3]}
    )
    assert (report.end, report.step) == ("failed", 3)
    assert "nothing to validate on. Give val_size" in str(report.message)


# Ends


def test_a_reached_target_ends_the_trial(fixed: Options) -> None:
    (report,) = run_one(fixed, eval_target=100.0)
    assert (report.step, report.end) == (2, "stopped_early")
    assert "eval_target: 100" in str(report.message)
    assert run_one(fixed, eval_target=0.0)[-1].end == "finished"
    (report,) = run_one(fixed, eval_target=0.0, metric_for_best_model="eval_token_accuracy")
    assert report.end == "stopped_early"


def test_the_time_limit_ends_by_a_validation(fixed: Options) -> None:
    (report,) = run_one(fixed, max_train_minutes=1e-9)
    assert (report.step, report.validation, report.end) == (1, 1, "stopped_early")
    assert "max_train_minutes" in str(report.message)
    assert "eval_loss" in report.metrics


def test_time_that_a_resumed_trial_has_taken_counts(fixed: Options, tmp_path: Path) -> None:
    run = Run(fixed)
    options = {**A, "max_train_minutes": 10.0}
    run.add(0, options)
    run.advance(1)
    run.trainer._engine._trials[0].progress.seconds = 601.0
    run.trainer.save(0, tmp_path / "saved")
    run.add(1, options, tmp_path / "saved")
    run.advance(1)
    (report,) = run.reports[1]
    assert (report.step, report.end) == (1, "stopped_early")


@pytest.mark.parametrize("is_async", [False, True])
def test_the_best_weights_are_restored_at_the_end(
    fixed: Options, is_async: bool, tmp_path: Path
) -> None:
    """Where the highest loss is the best, it is the first one's."""
    options = {**A, **HIGHEST_LOSS, "early_stopping_patience": 3}
    run = Run(fixed, eval_async=is_async)
    run.add(0, options)
    reports = finish(run)
    losses = [report.metrics["eval_loss"] for report in reports]
    assert len(losses) == 4
    assert max(losses) == losses[0]
    run.trainer.save(0, tmp_path / "saved")
    adapter = tmp_path / "saved" / "adapter"
    found = run.trainer.evaluate({**run.fixed, **options}, adapter)["eval_loss"]
    assert found == losses[0]


def test_patience_goes_by_the_metric_for_the_best_model(fixed: Options) -> None:
    """An accuracy must rise by more than it can: the second validation is the last."""
    options = {"early_stopping_patience": 1, "early_stopping_threshold": 1.0}
    reports = run_one(fixed, metric_for_best_model="eval_token_accuracy", **options)
    assert [report.end for report in reports] == [None, "stopped_early"]
    assert "no better eval_token_accuracy in 1 validations" in str(reports[-1].message)


# Callbacks


def test_a_callback_ends_its_own_trial(fixed: Options) -> None:
    reports = run_one(fixed, {"callbacks": [f"{HERE}:StopAfter"]})
    assert [report.end for report in reports] == [None, "stopped_early"]
    (*_, report) = run_one(fixed, {"callbacks": [{"path": f"{HERE}:StopAfter", "step": 3}]})
    assert (report.step, report.end, report.validation) == (3, "stopped_early", 2)
    assert "eval_loss" in report.metrics


def test_transformers_own_early_stopping_works(fixed: Options) -> None:
    path = "transformers:EarlyStoppingCallback"
    callback = {"path": path, "early_stopping_patience": 1, "early_stopping_threshold": 100.0}
    reports = run_one(fixed, {"callbacks": [callback]}, load_best_model_at_end=True)
    assert [report.end for report in reports] == [None, "stopped_early"]


def test_a_callback_that_raises_fails_its_trial(fixed: Options) -> None:
    (report,) = run_one(fixed, {"callbacks": [f"{HERE}:Breaks"]})
    assert (report.end, report.step) == ("failed", 2)
    assert "my callback is broken" in str(report.message)


# Generated answers


def test_generated_answers_are_measured_and_kept(fixed: Options) -> None:
    options = {"eval_metrics": ["exact_match", "rouge"], "max_new_tokens": 4}
    reports = run_one(fixed, {**options, "eval_generate_max_samples": 3})
    for report in reports:
        assert {"exact_match", "rougeL", "eval_loss"} <= set(report.metrics)
        assert len(report.samples) == 3
        assert {"prompt", "expected", "generated"} <= set(report.samples[0])
        json.dumps([dict(sample) for sample in report.samples])


# The log


def test_a_jumping_gradient_names_its_rows(fixed: Options) -> None:
    run = Run(fixed)
    run.add(0, {**A, "max_steps": 12, "eval_steps": 12, "grad_norm_jump": 4.0})
    run.advance(6)
    trial = run.trainer._engine._trials[0]
    assert len(trial.progress.grad_norms) == 6
    trial.progress.grad_norms = [1e-6] * 6
    finish(run)
    lines = lines_of(run.reports[0])
    assert next(line["step"] for line in lines if "samples" in line) == 7
    rows = [row for rows in trial.order.micro_batches(7) for row in rows]
    assert lines[6]["samples"] == ", ".join(trial._where(rows))
    assert "samples" not in lines[4]


def test_every_nth_line_goes_to_the_log(fixed: Options, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="trainers.lora"):
        reports = run_one(fixed, logging_steps=3)
    steps = [text for text in caplog.messages if " loss=" in text]
    assert [text.split()[:2] for text in steps] == [["trial=0", "step=3"], ["trial=0", "step=6"]]
    loss = lines_of(reports)[2]["loss"]
    assert f"loss={loss:.6g}" in steps[0]
    assert all(float(str(line["process_memory_gib"])) > 0 for line in lines_of(reports))


def test_the_first_report_says_the_notes_once(fixed: Options) -> None:
    run = Run(fixed, dtype="auto")
    run.add(0, A)
    reports = finish(run)
    assert tuple(reports[0].notes) == run.trainer.plan({**run.fixed, **A}).notes != ()
    assert [tuple(report.notes) for report in reports[1:]] == [(), ()]
