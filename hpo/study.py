"""A study as its driver sees it: propose, report -> verdict, tell, adopt, delete checkpoints.

The only writer of the storage. Every method leaves the database in a state from which a new driver
goes on: what is decided is a function of what is stored, and nothing else is remembered.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import get_storage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo import trial_log
from hpo.checkpoints import CheckpointStore
from hpo.database import guarded
from hpo.errors import CheckpointError, ExhaustedError, LeaseLostError
from hpo.leases import Leases
from hpo.mirror import Mirror
from hpo.proposals import SAMPLER_STATE, Proposal, Proposer
from hpo.result import write_best
from hpo.studies import (
    CONFIG,
    CONSTRAINTS,
    DIGEST,
    END,
    INFEASIBLE,
    LOSSES,
    REPORT,
    StudyRecord,
    TrialRecord,
    best_validation,
    ranked,
    trial_record,
)
from hpo.verdicts import build_judge
from search_spaces import SpaceError
from trainers.protocol import Report

log = logging.getLogger(__name__)

_T = TypeVar("_T")

LEFTOVER_AGE_S = 60.0
"""Unfinished checkpoints that old are a dead writer's; a younger one may still be written."""

STATE_OF_END = {
    "finished": TrialState.COMPLETE,
    "stopped_early": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "out_of_memory": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "lost": TrialState.FAIL,
}


@dataclass(frozen=True)
class Claim:
    """A trial that this driver owns.

    Attributes:
        number: For life.
        epoch: Of the lease; every write is checked against it.
        config: The trainer's whole config.
        adopted: It was interrupted before, and goes on from its newest checkpoint.
    """

    number: int
    epoch: int
    config: dict[str, object]
    adopted: bool


class Study:
    """One driver's hold on a study."""

    def __init__(self, record: StudyRecord, num_trials: int) -> None:
        """Take the study over.

        Args:
            record: The stored study.
            num_trials: Rows the study shall have in the end.

        Raises:
            StudyError: On SQLite, another driver runs it.
        """
        self.spec = record.spec
        self.num_trials = num_trials
        self.record = record
        self.folder = Path(self.spec.output_dir) / self.spec.study
        self.store = CheckpointStore(self.folder)
        self._lock = record.database.driver_lock(record.name)
        self.owner = f"{os.uname().nodename[:20]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._leases = Leases(record.database, self.owner, self.spec.lease_s)
        self._renew_at = 0.0
        self._storage = get_storage(record.database.storage)
        direction = StudyDirection.MINIMIZE if self.spec.sign > 0 else StudyDirection.MAXIMIZE
        self._mirror = Mirror(record.name, direction)
        self._judge = build_judge(self.spec.pruner)
        self._space = self.spec.search_space
        self._proposer = Proposer(self.spec, self._mirror)
        self._ids: list[int] = []
        self._claims: dict[int, Claim] = {}
        self._digests: set[str] = set()
        self._write(self._sync)
        record.clear_stop()
        self._sweep()
        self._write_best()

    # Proposing and adopting

    def next_trial(self) -> Claim | None:
        """Return a trial to train: an interrupted one, or else a new one.

        Returns:
            None while other drivers hold what is left to do.

        Raises:
            ExhaustedError: There is nothing left, and nothing that could come back.
        """
        while True:
            with self.record.database.exclusive(self.record.study_id):
                self._see_other_drivers()
                number = self._interrupted()
                if number is None:
                    return self._propose()
            try:
                if not self._settle(number):
                    return self._claims[number]
            except LeaseLostError:
                self.drop(number)

    def _interrupted(self) -> int | None:
        """Claim the first unfinished trial that nobody holds, and return its number."""
        for trial in self._mirror.trials:
            if trial.state.is_finished() or trial.number in self._claims:
                continue
            trial_id = self._ids[trial.number]
            epoch = self._write(partial(self._leases.claim, trial_id))
            if epoch is None:
                continue
            self._claim(trial.number, epoch, adopted=True)
            return trial.number
        return None

    def _propose(self) -> Claim | None:
        unfinished = any(not trial.state.is_finished() for trial in self._mirror.trials)
        if len(self._mirror.trials) >= self.num_trials:
            if unfinished:
                return None
            raise ExhaustedError(f"all {self.num_trials} trials are done.")
        number = len(self._mirror.trials)
        try:
            proposal = self._proposer.propose(number, self._digests)
        except ExhaustedError:
            if unfinished:
                return None
            raise
        trial_id = self._write(lambda: self._insert(number, proposal))
        self._write(self._sync_one(trial_id))
        epoch = self._write(lambda: self._leases.claim(trial_id))
        if epoch is None:  # another driver saw the row before we claimed it
            return None
        return self._claim(number, epoch, adopted=False)

    def _insert(self, number: int, proposal: Proposal) -> int:
        """Store a proposal in one insert. It waits until it is claimed: no state lacks an owner.

        Tried again after a fault that came behind the commit, it finds the row and makes no second.
        """
        self._sync()
        if len(self._ids) > number:
            return self._ids[number]
        template = FrozenTrial(
            number=-1,
            trial_id=-1,
            state=TrialState.WAITING,
            value=None,
            datetime_start=None,
            datetime_complete=None,
            params=dict(proposal.params),
            distributions=dict(proposal.distributions),
            user_attrs={},
            system_attrs={
                **proposal.system_attrs,
                CONFIG: proposal.config,
                DIGEST: proposal.digest,
            },
            intermediate_values={},
        )
        return self._storage.create_new_trial(self.record.study_id, template)

    def _claim(self, number: int, epoch: int, *, adopted: bool) -> Claim:
        config = dict(self._mirror.trials[number].system_attrs[CONFIG])
        claim = Claim(number, epoch, config, adopted)
        self._claims[number] = claim
        self._write(
            lambda: self._storage.set_trial_state_values(self._ids[number], TrialState.RUNNING)
        )
        self._write(self._sync_one(self._ids[number]))
        return claim

    def _settle(self, number: int) -> bool:
        """Bring an adopted trial up to its newest checkpoint; return whether that ends it.

        Judges the newest stored report again, as the crash may have come between it and its verdict,
        or between that and its telling. An older one's verdict is known: the trial went on from it.
        (To judge those too, by what other trials have reported since, can end every trial: each is
        beaten at some rung by one that is itself beaten at another.) Then files and judges the
        reports that only the checkpoint has, oldest first.
        """
        self.store.sweep(number, LEFTOVER_AGE_S)
        end = self._mirror.trials[number].system_attrs.get(END) or {}
        if end.get("reason") == "out_of_memory":  # killed before the rest of it was told
            self._end(number, "out_of_memory", end["message"], end["notes"])
            return True
        checkpoint = self.store.newest(number)
        reports = self.store.reports(number, checkpoint) if checkpoint else []
        history = {report.validation: report for report in reports}
        stored = dict(self._mirror.trials[number].intermediate_values)
        for index in sorted({*stored, *history}):
            if index in history:
                trial_log.catch_up(self.store.trial_folder(number), history[index])
            if index not in stored and self.report(number, history[index]):
                return True
            ends_here = index in history and history[index].end is not None
            newest = index in stored and index == max(stored)
            if newest and not ends_here and self._stops_at(number, index):
                self._end(number, "pruned", None)
                return True
        last = history[max(history)] if history else None
        if last is not None and last.end is not None:
            self._end(number, last.end, last.message)
            return True
        return False

    # Reports and verdicts

    def knows(self, number: int, report: Report) -> bool:
        """Return whether a report is stored: a host says it again when it goes on from a checkpoint."""
        stored = self._mirror.trials[number].intermediate_values
        return report.validation in stored and report.end is None

    def report(self, number: int, report: Report) -> bool:
        """Store what a trial says, judge it, and end it if that is the verdict.

        Returns:
            Whether the trial is over.

        Raises:
            LeaseLostError: Another driver has it; nothing was written.
        """
        if self.knows(number, report):
            return False
        stored = self._mirror.trials[number].intermediate_values
        if report.metrics and report.validation not in stored:
            value = report.metrics.get(self.spec.metric)
            if value is None:
                self._end(
                    number,
                    "failed",
                    f"the trainer reports no metric {self.spec.metric!r}. It reports: "
                    f"{', '.join(sorted(report.metrics))}. Name one of these as 'metric:'.",
                    report.notes,
                )
                return True
            if not math.isfinite(value):
                self._end(number, "diverged", f"{self.spec.metric} is {value}.", report.notes)
                return True
            self._file(number, report, float(value))
        if report.end is not None:
            self._end(number, report.end, report.message, report.notes)
            return True
        if report.metrics and self._stops_at(number, report.validation):
            self._end(number, "pruned", None)
            return True
        self._thin_out(number)
        return False

    def _file(self, number: int, report: Report, value: float) -> None:
        trial_id = self._ids[number]
        said: Any = {"step": report.step, "metrics": dict(report.metrics)}
        if report.notes:
            said["notes"] = list(report.notes)

        def write() -> None:
            with self._leases.held(trial_id, self._claims[number].epoch):
                self._storage.set_trial_system_attr(trial_id, f"{REPORT}{report.validation}", said)
                self._storage.set_trial_intermediate_value(trial_id, report.validation, value)

        self._write(write)
        held = self._mirror.trials[number]
        held.system_attrs[f"{REPORT}{report.validation}"] = said
        held.intermediate_values[report.validation] = value

    def _stops_at(self, number: int, validation: int) -> bool:
        """Return the verdict on a trial as it was at one of its validations."""
        trial = copy.copy(self._mirror.trials[number])
        trial.intermediate_values = {
            index: value
            for index, value in trial.intermediate_values.items()
            if index <= validation
        }
        self._see_other_drivers()
        return self._judge.stops(self._mirror.study(), trial)

    # Ends

    def fail(self, number: int, message: str) -> None:
        """Tell that a trial could not be trained."""
        self._end(number, "failed", message)

    def lose(self, number: int, cause: str) -> bool:
        """Count that a trial's process or node was lost or stalled; it is no fault of its config.

        Returns:
            Whether it goes on from its checkpoint; else it was told as failed: too often.

        Raises:
            LeaseLostError: Another driver has it.
        """
        trial_id = self._ids[number]
        losses = [*self._mirror.trials[number].system_attrs.get(LOSSES, []), cause]

        def write() -> None:
            with self._leases.held(trial_id, self._claims[number].epoch):
                self._storage.set_trial_system_attr(trial_id, LOSSES, losses)

        self._write(write)
        self._mirror.trials[number].system_attrs[LOSSES] = losses
        if len(losses) <= self.spec.max_failures:
            return True
        said = "; ".join(f"{losses.count(loss)} x {loss}" for loss in dict.fromkeys(losses))
        self._end(number, "lost", f"it was lost {len(losses)} times: {said}")
        return False

    def num_losses(self, number: int) -> int:
        """Return how often a trial's process or node was lost so far."""
        return len(self._mirror.trials[number].system_attrs.get(LOSSES, []))

    def repeated_error(self) -> str | None:
        """Return the error that the last ``max_identical_errors`` ended trials failed with, if any."""
        ended = [trial for trial in self._mirror.trials if trial.state.is_finished()]
        ended.sort(key=lambda trial: (str(trial.datetime_complete), trial.number))
        last = [
            trial.system_attrs.get(END, {}) for trial in ended[-self.spec.max_identical_errors :]
        ]
        errors = {
            _kind_of(end.get("message") or "") for end in last if end.get("reason") == "failed"
        }
        if len(last) < self.spec.max_identical_errors or len(errors) != 1:
            return None
        if any(end.get("reason") != "failed" for end in last):
            return None
        return str(last[-1]["message"])

    def release(self, number: int) -> None:
        """Hand an unfinished trial back, to be adopted by whoever comes next."""
        claim = self._claims.pop(number)
        trial_id = self._ids[number]

        def write() -> None:
            with self._leases.held(trial_id, claim.epoch):
                self._storage.set_trial_state_values(trial_id, TrialState.WAITING)
            self._leases.release(trial_id, claim.epoch)

        self._write(write)
        self._write(self._sync_one(trial_id))

    def _end(
        self, number: int, reason: str, message: str | None, notes: Sequence[str] = ()
    ) -> None:
        trial_id = self._ids[number]
        state = STATE_OF_END[reason]
        trial = self._mirror.trials[number]
        best = best_validation(trial, self.spec)
        if state is TrialState.COMPLETE and best is None:
            state, reason = TrialState.FAIL, "failed"
            message = f"the trial ended without one validation of {self.spec.metric!r}."
        values = None if reason == "out_of_memory" else _told_values(trial, state, best)

        def write() -> None:
            with self._leases.held(trial_id, self._claims[number].epoch):
                end = {"reason": reason, "message": message, "notes": list(notes)}
                try:
                    self._storage.set_trial_system_attr(trial_id, END, end)
                    if reason == "out_of_memory":
                        self._storage.set_trial_system_attr(trial_id, CONSTRAINTS, INFEASIBLE)
                    self._storage.set_trial_user_attr(trial_id, "ended", reason)
                    if message:
                        self._storage.set_trial_user_attr(trial_id, "message", message[:2000])
                    self._storage.set_trial_state_values(trial_id, state, values)
                except UpdateFinishedTrialError:
                    return  # told before a retry: the write had reached the database

        self._write(write)
        self._write(self._sync_one(trial_id))
        del self._claims[number]
        if state is TrialState.COMPLETE:
            self._write_best()
        self._sweep()

    # Files

    def _thin_out(self, number: int) -> None:
        """Delete a running trial's checkpoints but its best, its latest and the one before.

        One that is newer than the newest report stays: its report is under way and may be the best.
        """
        trial = trial_record(self._mirror.trials[number], self.spec)
        steps = self.store.steps(number)
        filed = [step for step in steps if step <= trial.step]
        keep = {step for step in steps if step > trial.step} | {*filed[-2:], trial.best_step}
        self.store.delete(number, {step for step in steps if step in keep})

    def _winners(self) -> dict[int, int]:
        """Return the trials whose best checkpoint is kept, with its step."""
        best = ranked(self.trials(), self.spec)[: self.spec.keep_checkpoints]
        return {trial.number: trial.best_step for trial in best if trial.best_step is not None}

    def _sweep(self) -> None:
        """Delete the checkpoints of finished trials that cannot win any more."""
        winners = self._winners()
        for number in self.store.trials():
            known = number < len(self._mirror.trials)
            if known and self._mirror.trials[number].state.is_finished():
                self.store.delete(number, {winners[number]} if number in winners else ())
                self.store.sweep(number, LEFTOVER_AGE_S)

    def _write_best(self) -> None:
        """Bring `best/` up to what the database says; a torn checkpoint gives way to the next."""
        with self.record.database.exclusive(self.record.study_id):
            self._see_other_drivers()
            for trial in ranked(self.trials(), self.spec):
                assert trial.best_step is not None
                try:
                    checkpoint = self.store.at_step(trial.number, trial.best_step)
                except CheckpointError as error:
                    log.warning("trial %d cannot be handed over: %s", trial.number, error)
                    continue
                write_best(self.folder / "best", self.spec, trial, checkpoint)
                return

    # Reading, and staying alive

    def trials(self) -> list[TrialRecord]:
        """Return all trials, as far as this driver knows."""
        return [trial_record(trial, self.spec) for trial in self._mirror.trials]

    def tick(self) -> set[int]:
        """Renew the leases when it is time; return the trials that were lost to other drivers."""
        now = time.monotonic()
        if now < self._renew_at:
            return set()
        self._renew_at = now + self.spec.lease_s / 3
        claims = [(self._ids[n], claim.epoch) for n, claim in self._claims.items()]
        lost_ids = set(self._write(lambda: self._leases.renew(claims)))
        lost = {number for number in self._claims if self._ids[number] in lost_ids}
        for number in lost:
            self.drop(number)
        return lost

    def drop(self, number: int) -> None:
        """Forget a trial that another driver owns now."""
        log.warning(
            "trial %d was taken over by another driver, because this one was silent for more than "
            "%g s; its work here is dropped",
            number,
            self.spec.lease_s,
        )
        self._claims.pop(number, None)

    @property
    def is_done(self) -> bool:
        """Whether every trial that was asked for has ended."""
        ended = all(trial.state.is_finished() for trial in self._mirror.trials)
        return ended and len(self._mirror.trials) >= self.num_trials

    @property
    def claimed(self) -> frozenset[int]:
        """The trials that this driver owns now."""
        return frozenset(self._claims)

    def close(self) -> None:
        """Hand back what is unfinished and leave the study."""
        for number in list(self._claims):
            try:
                self.release(number)
            except LeaseLostError:
                self._claims.pop(number, None)
        self._sweep()
        if self._lock is not None:
            self._lock.release()

    def _see_other_drivers(self) -> None:
        """Catch up with what they have stored; on SQLite this driver is the only one."""
        if not self.record.database.is_sqlite:
            self._write(self._sync)

    def _sync(self) -> None:
        stored = self._storage.get_all_trials(self.record.study_id, deepcopy=False)
        for trial in sorted(stored, key=lambda trial: trial.number):
            known = trial.number < len(self._mirror.trials)
            if not known or not self._mirror.trials[trial.number].state.is_finished():
                self._see(trial)

    def _sync_one(self, trial_id: int) -> Callable[[], None]:
        return lambda: self._see(self._storage.get_trial(trial_id))

    def _distributions(self, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return a trial's ranges as they are now: samplers search where all trials agree."""
        try:
            return self._space.distributions(trial.params)
        except SpaceError:
            return trial.distributions

    def _see(self, trial: FrozenTrial) -> None:
        if trial.number == len(self._ids):
            self._ids.append(trial._trial_id)
        self._mirror.put(trial, self._distributions(trial))
        self._digests.add(str(trial.system_attrs.get(DIGEST)))
        for key, value in trial.system_attrs.get(SAMPLER_STATE, {}).items():
            self._mirror.set_study_system_attr(self._mirror.study_id, key, value)

    def _write(self, action: Callable[[], _T]) -> _T:
        return guarded(self.record.database.url, action)


def _kind_of(message: str) -> str:
    """Return an error's last line without its numbers: the same mistake in two trials is one."""
    lines = message.strip().splitlines() or [""]
    return re.sub(r"\d+", "#", lines[-1])


def _told_values(trial: FrozenTrial, state: TrialState, best: int | None) -> list[float] | None:
    """Return what a trial is told with: a pruned one, as Optuna does it, with its last report."""
    if best is None or state is TrialState.FAIL:
        return None
    index = best if state is TrialState.COMPLETE else trial.last_step
    assert index is not None
    return [trial.intermediate_values[index]]
