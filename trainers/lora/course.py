"""What a trial does around its steps: validations, callbacks, its end; beside training if asked.

Each step of a trial has at most one validation, and each call at most one report of a trial, so that
what is saved after a report is the trial as it was then.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from trainers.lora import step_log
from trainers.lora.callbacks.trial_callbacks import Wishes
from trainers.lora.snapshots import Snapshot, exchange, take_snapshot
from trainers.lora.trial import Trial
from trainers.lora.validation.eval_sets import EvalPart
from trainers.lora.validation.results import Measured
from trainers.lora.validation.side import SideValidator, drop
from trainers.lora.validation.validator import Due, Validator
from trainers.lora.verdict import judge, restore_best
from trainers.protocol import Report

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Pending:
    """A validation beside training: of the trial as it was, and what it will find."""

    snapshot: Snapshot
    found: Future[Measured]


class Course:
    """Leads each trial from step to step."""

    def __init__(self, validator: Validator, side: SideValidator | None) -> None:
        self._validator = validator
        self._side = side
        self._pending: dict[int, _Pending] = {}
        self._reported: dict[int, Snapshot] = {}

    def add(self, trial: Trial) -> None:
        if self._side is not None:
            self._side.add(trial.key, trial.options)

    def remove(self, trial: Trial) -> None:
        """Let a trial leave; one that was not at its end tells its callbacks so."""
        key = trial.key
        if trial.callbacks is not None and trial.progress.end is None and trial.step > 0:
            try:
                trial.callbacks.train_end()
            except Exception as error:  # it is over: nobody waits for a report of it
                log.warning("trial %d: %s", key, error)
        pending = self._pending.pop(key, None)
        self._reported.pop(key, None)
        if pending is not None:
            drop(pending.found)
        if self._side is not None:
            self._side.remove(key)

    def state_to_save(self, trial: Trial) -> Snapshot | None:
        """Return the trial as it was at its newest report, or at a validation under way.

        None if it is to be saved as it is now. What was trained since is done again by a trial that
        goes on from there.
        """
        pending = self._pending.get(trial.key)
        return self._reported.get(trial.key) or (pending.snapshot if pending else None)

    def begin_round(self) -> None:
        """Begin another step of all trials: what was reported has been saved."""
        self._reported.clear()

    def wait_for_any(self) -> None:
        """Wait until a validation beside training is done, if there is one."""
        if self._pending:
            found = [pending.found for pending in self._pending.values()]
            wait(found, return_when=FIRST_COMPLETED)

    def before_step(self, trial: Trial) -> Report | None:
        """Do what a trial owes before its next step: a validation that is over, due, or the first."""
        pending = self._pending.get(trial.key)
        if pending is not None:
            return self._settle(trial, pending) if pending.found.done() else None
        if trial.is_validation_due:  # a resumed trial was saved while this was under way
            return self._validate_when_due(trial)
        if trial.step == 0 and trial.options.eval_on_start:
            self._validate_on_start(trial)
        return None

    def may_step(self, trial: Trial, report: Report | None) -> bool:
        """Return whether the trial has nothing to wait for, after what ``before_step`` returned."""
        if report is not None and trial.key not in self._reported:
            return False  # it is to be saved as it is now
        if trial.progress.end is not None or trial.is_last_step_done or trial.is_out_of_time:
            return False
        pending = self._pending.get(trial.key)
        return pending is None or not _is_owed(trial, pending)

    def begin_step(self, trial: Trial) -> None:
        if trial.callbacks is not None:
            trial.callbacks.step_begin()

    def after_step(self, trial: Trial) -> Report | None:
        """Log a step that is done; validate and end the trial if that is due."""
        line = trial.progress.step_lines[-1]
        if trial.step % trial.schedule.logging_steps == 0:
            step_log.log(trial.key, line)
        if trial.callbacks is not None:
            return self._after_step_with_callbacks(trial)
        return self._validate_when_due(trial) if trial.is_validation_due else None

    def measure_together(self, trials: Sequence[Trial]) -> None:
        """Compute what the validations need that are due now, with shared passes.

        An error is left to the validation of the trial that it belongs to.
        """
        if self._side is not None:
            return
        due = [trial for trial in trials if trial.is_validation_due and trial.options.validates]
        if len(due) > 1:
            self._validator.measure_together(
                [Due(trial.key, self._parts(trial), trial.results, trial.max_loss) for trial in due]
            )

    def _validate_on_start(self, trial: Trial) -> None:
        """Log a validation of the untrained weights, whatever their loss."""
        measured = self._measure(trial, max_loss=math.inf)
        metrics = self._metrics(trial, measured)
        self._log(trial, metrics)
        if trial.callbacks is not None and measured.diverged is None:
            trial.callbacks.train_begin()
            trial.callbacks.evaluated(metrics)

    def _validate_when_due(self, trial: Trial) -> Report | None:
        """Report the validation that is due, or begin it beside training."""
        if self._side is None or not trial.options.validates:
            return self._take_in(trial, self._measure(trial))
        if trial.key not in self._pending:  # else when that one is over, before the next step
            snapshot = take_snapshot(trial)
            found = self._side.submit(
                trial.key, snapshot.weights, self._parts(trial), trial.max_loss
            )
            self._pending[trial.key] = _Pending(snapshot, found)
        return None

    def _settle(self, trial: Trial, pending: _Pending) -> Report | None:
        """Take in a validation beside training, as if the trial had waited for it."""
        del self._pending[trial.key]
        measured = pending.found.result()
        now = exchange(trial, pending.snapshot)
        report = self._take_in(trial, measured)
        if trial.progress.end is not None:
            return report  # the steps since are undone
        now.progress.take_over_validation(trial.progress, measured.seconds)
        now.best_weights = trial.best_weights
        self._reported[trial.key] = exchange(trial, now)
        if trial.is_validation_due:
            self._validate_when_due(trial)
        return report

    def _after_step_with_callbacks(self, trial: Trial) -> Report | None:
        """Let the callbacks see the step, and validate if they or the schedule ask for it."""
        callbacks = trial.callbacks
        assert callbacks is not None
        line = trial.progress.step_lines[-1]
        is_due = trial.is_validation_due
        wishes = callbacks.step_end(line, is_due, trial.is_last_step_done)
        stop = wishes.stop
        measured = None
        if is_due or _asks_to_validate(wishes, trial):
            measured, has_enough = self._measure_and_tell(trial)
            stop |= has_enough
        if callbacks.is_epoch_end:
            wishes = callbacks.epoch_end()
            stop |= wishes.stop
            if measured is None and _asks_to_validate(wishes, trial):
                measured, has_enough = self._measure_and_tell(trial)
                stop |= has_enough
        if measured is None and stop:
            measured, _ = self._measure_and_tell(trial)
        if measured is None:
            return None
        return self._take_in(trial, measured, stop="a callback stopped it" if stop else None)

    def _measure_and_tell(self, trial: Trial) -> tuple[Measured, bool]:
        """Validate, and show it to the callbacks; return whether they have the trial stop."""
        assert trial.callbacks is not None
        measured = self._measure(trial)
        if measured.diverged is not None:
            return measured, False
        stop = False
        if trial.options.validates:
            stop = trial.callbacks.evaluated(self._metrics(trial, measured)).stop
        if _is_report(trial):  # the driver saves every report
            stop |= trial.callbacks.saved().stop
        return measured, stop

    def _take_in(self, trial: Trial, measured: Measured, stop: str | None = None) -> Report | None:
        """Let a validation have its consequences; return a report if it makes one."""
        trial.progress.seconds += measured.seconds
        if measured.diverged is not None:
            return trial.diverge(measured.diverged, trial.step)
        metrics = self._metrics(trial, measured)
        is_report = _is_report(trial)
        judge(trial, metrics, stop)
        if not is_report and trial.progress.end is None:
            self._log(trial, metrics)
            return None
        if trial.callbacks is not None:
            if not is_report:  # it became one by the trial's end
                trial.callbacks.saved()
            if trial.progress.end is not None:
                trial.callbacks.train_end()
            trial.callbacks.state()  # one that cannot be saved fails this trial, not the saving
        restore_best(trial)
        return trial.report_validation(metrics, measured.samples)

    def _measure(self, trial: Trial, max_loss: float | None = None) -> Measured:
        """Validate the trial as it is now; find nothing where nothing is validated."""
        if not trial.options.validates:
            return Measured({}, (), 0.0)
        limit = trial.max_loss if max_loss is None else max_loss
        return self._validator.validate(trial.key, self._parts(trial), trial.results, limit)

    def _parts(self, trial: Trial) -> list[EvalPart]:
        """Return the examples of the trial's next validation, by its index alone."""
        num_validations = len(trial.schedule.validation_steps)
        return self._validator.sets.at(trial.progress.validation + 1, num_validations)

    def _metrics(self, trial: Trial, measured: Measured) -> dict[str, float]:
        progress = trial.progress
        of_training = {"epoch": trial.schedule.epoch(trial.step)}
        if any("loss" in line for line in progress.step_lines):
            of_training["train_loss"] = progress.train_loss
        return {**measured.metrics, **of_training}

    def _log(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        step_log.log(trial.key, trial.log_validation(metrics))


def _is_report(trial: Trial) -> bool:
    """Return whether a validation now is a report, or only a line of the log."""
    return trial.is_validation_due or not trial.options.is_scheduled


def _is_owed(trial: Trial, pending: _Pending) -> bool:
    """Return whether the trial stands at a validation that comes after one that is under way."""
    return trial.is_validation_due and pending.snapshot.step != trial.step


def _asks_to_validate(wishes: Wishes, trial: Trial) -> bool:
    """Return whether a callback wishes for a validation now.

    Raises:
        ValueError: There is nothing to validate on.
    """
    if wishes.evaluate and not trial.options.validates:
        raise ValueError(
            "a callback asks for a validation, but there is nothing to validate on. Give val_size "
            "or validation_file."
        )
    return wishes.evaluate
