"""A study as its driver sees it: propose, report -> verdict, tell, adopt.

The only writer of the storage. Every act is one transaction (``hpo.storage.rows``) and leaves the
database in a state from which a new driver goes on: what is decided is a function of what is stored,
and nothing else is remembered. Which checkpoints go is in ``hpo.keeping``.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import re
import time
import uuid
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo import faults, trial_log
from hpo.checkpoints import CheckpointStore
from hpo.errors import CheckpointError, ExhaustedError, LeaseLostError
from hpo.keeping import LEFTOVER_AGE_S, Keeper
from hpo.known_trials import KnownTrials
from hpo.proposals import Proposer
from hpo.result import write_best
from hpo.storage.attributes import CONFIG, CONSTRAINTS, END, INFEASIBLE, LOSSES, REPORT
from hpo.storage.database import Lock, Turn, shown
from hpo.storage.row_shapes import readable
from hpo.storage.rows import Rows
from hpo.studies import StudyRecord, TrialRecord, best_validation
from hpo.verdicts import build_judge
from trainers.protocol import Report

log = logging.getLogger(__name__)

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
        self.store = CheckpointStore.of_study(self.spec.output_dir, self.spec.study)
        self.store.check()
        self.folder = self.store.work
        self._keeper = Keeper(self.store)
        self._lock = record.database.driver_lock(record.name)
        self.owner = f"{os.uname().nodename[:20]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._rows = Rows(record.database, record.study_id, self.owner, self.spec.lease_s)
        self._renew_at = 0.0
        self._judge = build_judge(self.spec.pruner)
        with readable(record.name, shown(record.database.url)):
            space = self.spec.search_space
            self._trials = KnownTrials(record, space, self._judge.bracket_of)
            self._proposer = Proposer(self.spec, self._trials.mirror)
        self._claims: dict[int, Claim] = {}
        self._began_at = self._rows.now()
        self.tick()
        self._trials.see_all()
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
            with self._exclusive(Lock.PROPOSING):
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
        unfinished = self._trials.standing.unfinished
        numbers = {self._trials.id_of(n): n for n in unfinished if n not in self._claims}
        for trial_id in self._rows.free(list(numbers)):
            epoch = self._rows.claim(trial_id)
            number = numbers[trial_id]
            if epoch is None:
                continue
            self._trials.see(trial_id)
            if self._trials[number].state.is_finished():  # it stood still, and another has ended it
                continue
            self._hold(number, epoch, adopted=True)
            faults.reached("adopted")
            return number
        return None

    def _propose(self) -> Claim | None:
        number = len(self._trials)
        unfinished = self._trials.standing.unfinished
        if number >= self.num_trials:
            if unfinished:
                return None
            raise ExhaustedError(f"all {self.num_trials} trials are done.")
        try:
            proposal = self._proposer.propose(number, self._trials.digests)
        except ExhaustedError:
            if unfinished:
                return None
            raise
        faults.reached("proposed")
        leftovers = self.store.steps(number)
        trial = self._rows.insert(number, self._trials.newest_id, proposal)
        if trial is None:  # another driver has stored one since, without our seeing it
            return None
        if leftovers:  # of a trial whose row went with the power, or with a backup put back
            self.store.delete(number)
        self._trials.add(trial)
        claim = self._hold(number, 1, adopted=False)
        faults.reached("running")
        return claim

    def _hold(self, number: int, epoch: int, *, adopted: bool) -> Claim:
        config = dict(self._trials[number].system_attrs[CONFIG])
        claim = Claim(number, epoch, config, adopted)
        self._claims[number] = claim
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
        checkpoint = self.store.newest(number)
        reports = self.store.reports(number, checkpoint) if checkpoint else []
        history = {report.validation: report for report in reports}
        stored = dict(self._trials[number].intermediate_values)
        for index in sorted({*stored, *history}):
            if index in stored and index in history:
                trial_log.catch_up(self.store.trial_folder(number), history[index])
                self.store.push(number)
            if index not in stored and self.report(number, history[index]):
                return True
            ends_here = index in history and history[index].end is not None
            newest = index in stored and index == max(stored)
            if newest and not ends_here:
                self._see_other_drivers()
                if self._stops_at(number, index):
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
        stored = self._trials[number].intermediate_values
        return report.validation in stored and report.end is None

    def report(self, number: int, report: Report) -> bool:
        """Store what a trial says, judge it, log it, and end it if that is the verdict.

        Returns:
            Whether the trial is over.

        Raises:
            LeaseLostError: Another driver has it; nothing was written.
        """
        if self.knows(number, report):
            return False
        faults.reached("report received")
        stored = self._trials[number].intermediate_values
        if report.metrics and report.validation not in stored:
            value = report.metrics.get(self.spec.metric)
            if value is None:
                message = (
                    f"the trainer reports no metric {self.spec.metric!r}. It reports: "
                    f"{', '.join(sorted(report.metrics))}. Name one of these as 'metric:'."
                )
                self._end(number, "failed", message, report)
                return True
            if not math.isfinite(value):
                self._end(number, "diverged", f"{self.spec.metric} is {value}.", report)
                return True
            self._file(number, report, float(value))
            faults.reached("report stored")
        if report.end is not None:
            self._end(number, report.end, report.message, report)
            return True
        if report.metrics and self._stops_at(number, report.validation):
            self._end(number, "pruned", None, report)
            return True
        self._log(number, report, "goes on")
        self._keeper.thin_out(self.trial(number))
        return False

    def _file(self, number: int, report: Report, value: float) -> None:
        """Store a report, and catch up with what other drivers have stored before it."""
        said: dict[str, Any] = {"step": report.step, "metrics": dict(report.metrics)}
        if report.notes:
            said["notes"] = list(report.notes)
        epoch, trial_id = self._epoch(number), self._trials.id_of(number)
        known = self._trials.newest_id, self._trials.unfinished_but(self._claims)
        news = self._rows.report(trial_id, epoch, report.validation, said, value, *known)
        name = f"{REPORT}{report.validation}"
        self._trials.add_report(number, report.validation, name, said, value)
        self._trials.see(*news)

    def _stops_at(self, number: int, validation: int) -> bool:
        """Return the verdict on a trial as it was at one of its validations."""
        trial = copy.copy(self._trials[number])
        trial.intermediate_values = {
            index: value
            for index, value in trial.intermediate_values.items()
            if index <= validation
        }
        return self._judge.stops(self._trials.mirror, trial)

    # Ends

    def fail(self, number: int, message: str) -> None:
        """Tell that a trial could not be trained."""
        self._end(number, "failed", message)

    def lose(self, number: int, cause: str, output: str = "") -> bool:
        """Count and log that a trial's process or node was lost or stalled; its config is not at fault.

        Args:
            number: Of the trial.
            cause: In a few words.
            output: The end of what that process wrote.

        Returns:
            Whether it goes on from its checkpoint; else it was told as failed: too often.

        Raises:
            LeaseLostError: Another driver has it.
        """
        losses = [*self._trials[number].system_attrs.get(LOSSES, []), cause]
        self._rows.note_losses(self._trials.id_of(number), self._epoch(number), losses)
        self._trials[number].system_attrs[LOSSES] = losses
        trial_log.append_loss(
            self.store.trial_folder(number), self.trial(number).step, cause, output
        )
        self.store.push(number)
        if len(losses) <= self.spec.max_failures:
            return True
        said = "; ".join(f"{losses.count(loss)} x {loss}" for loss in dict.fromkeys(losses))
        self._end(number, "lost", f"it was lost {len(losses)} times: {said}")
        return False

    def num_losses(self, number: int) -> int:
        """Return how often a trial's process or node was lost so far."""
        return len(self._trials[number].system_attrs.get(LOSSES, []))

    def repeated_error(self) -> str | None:
        """Return the error that the last ``max_identical_errors`` ended trials failed with, if any."""
        wanted = self.spec.max_identical_errors
        if self._trials.standing.counts[TrialState.FAIL] < wanted:
            return None
        last = self.record.summary.last_ends(wanted)
        kinds = {(end.reason, _kind_of(end.message or "")) for end in last}
        if len(last) < wanted or len(kinds) > 1 or last[0].reason != "failed":
            return None
        return last[0].message

    def release(self, number: int) -> None:
        """Hand an unfinished trial back, to be adopted by whoever comes next."""
        epoch = self._epoch(number)
        faults.reached("releasing")
        self._rows.release(self._trials.id_of(number), epoch)
        del self._claims[number]
        faults.reached("released")
        self._trials.release(number)

    def _end(
        self, number: int, reason: str, message: str | None, report: Report | None = None
    ) -> None:
        state = STATE_OF_END[reason]
        trial = self._trials[number]
        best = best_validation(trial, self.spec)
        if state is TrialState.COMPLETE and best is None:
            state, reason = TrialState.FAIL, "failed"
            message = f"the trial ended without one validation of {self.spec.metric!r}."
        is_infeasible = reason == "out_of_memory"
        value = None if is_infeasible else _told_value(trial, state, best)
        notes = [] if report is None else list(report.notes)
        end = {"reason": reason, "message": message, "notes": notes}
        if report is not None:  # before it is told: nobody goes through the log of an ended trial
            self._log(number, report, reason)
        faults.reached("judged")
        constraints = INFEASIBLE if is_infeasible else None
        trial_id, epoch = self._trials.id_of(number), self._epoch(number)
        completed = self._rows.end(trial_id, epoch, state, value, end, constraints)
        faults.reached("told")
        said = {END: end} if constraints is None else {END: end, CONSTRAINTS: constraints}
        self._trials.end(number, state, value, said, completed)
        del self._claims[number]
        if state is TrialState.COMPLETE:
            self._write_best()
        self._keeper.sweep_trial(number, self._winners())

    # Files

    def _log(self, number: int, report: Report, verdict: str) -> None:
        trial_log.append(self.store.trial_folder(number), report, verdict)
        self.store.push(number)

    def _winners(self) -> dict[int, int]:
        """Return the trials whose best checkpoint is kept, with its step."""
        leaders = self._trials.leaders(self.spec.keep_checkpoints)
        return {trial.number: trial.best_step for trial in leaders if trial.best_step is not None}

    def _sweep(self) -> None:
        """Delete the checkpoints of finished trials that cannot win any more."""
        num_known = len(self._trials)
        unfinished = set(self._trials.standing.unfinished)
        self._keeper.sweep(lambda n: n < num_known and n not in unfinished, self._winners())

    def _write_best(self) -> None:
        """Bring `best/` up to what the database says; a torn checkpoint gives way to the next kept."""
        while True:
            with self._exclusive(Lock.BEST) as turn:
                self._see_other_drivers()
                leaders = self._trials.leaders(self.spec.keep_checkpoints)
                try:
                    any(write_best(self.store, self.spec, trial) for trial in leaders)
                except CheckpointError:
                    if turn.lasts():
                        raise
                if turn.lasts():  # else this driver stood still, and another may have written since
                    return

    def _exclusive(self, lock: Lock) -> contextlib.AbstractContextManager[Turn]:
        """Let one driver at a time do something; this one renews its leases while it waits."""
        database, study_id = self.record.database, self.record.study_id
        return database.exclusive(lock, study_id, self.spec.lease_s / 2, self.tick)

    # Reading, and staying alive

    def trial(self, number: int) -> TrialRecord:
        """Return one trial, as far as this driver knows."""
        return self._trials.records([number])[0]

    def recent(self, num_trials: int) -> list[TrialRecord]:
        """Return the newest trials by number, as far as this driver knows."""
        have = len(self._trials)
        return self._trials.records(range(max(0, have - num_trials), have))

    def best(self) -> TrialRecord | None:
        """Return the best trial that had its full budget (or ended by its own patience)."""
        leaders = self._trials.leaders(1)
        return leaders[0] if leaders else None

    def counts(self) -> dict[str, int]:
        """Return the number of trials by state."""
        counts = self._trials.standing.counts
        return {state.name: count for state, count in counts.items() if count}

    def stop_requested(self) -> bool:
        """Return whether somebody has asked this driver to leave since it began."""
        return self.record.stop_requested(self._began_at)

    def tick(self) -> set[int]:
        """Renew the leases when it is time; return the trials that were lost to other drivers."""
        now = time.monotonic()
        if now < self._renew_at:
            return set()
        self._renew_at = now + self.spec.lease_s / 3
        claims = [(self._trials.id_of(n), claim.epoch) for n, claim in self._claims.items()]
        lost_ids = set(self._rows.renew(claims))
        lost = {number for number in self._claims if self._trials.id_of(number) in lost_ids}
        for number in lost:
            self.drop(number)
        return lost

    def drop(self, number: int) -> None:
        """Forget a trial that another driver owns now."""
        if self._claims.pop(number, None) is not None:
            log.warning(
                "trial %d was taken over by another driver, because this one was silent for more "
                "than %g s; its work here is dropped",
                number,
                self.spec.lease_s,
            )

    def _epoch(self, number: int) -> int:
        """Return the epoch under which this driver writes a trial.

        Raises:
            LeaseLostError: It has found out before that another driver took it over.
        """
        if number not in self._claims:
            raise LeaseLostError(
                f"trial {number} belongs to another driver now; what this one has of it is dropped."
            )
        return self._claims[number].epoch

    @property
    def is_done(self) -> bool:
        """Whether every trial that was asked for has ended."""
        return not self._trials.standing.unfinished and len(self._trials) >= self.num_trials

    @property
    def claimed(self) -> frozenset[int]:
        """The trials that this driver owns now."""
        return frozenset(self._claims)

    def close(self) -> None:
        """Hand back what is unfinished and leave the study."""
        try:
            self._leave()
        finally:
            if self._lock is not None:
                self._lock.release()

    def _leave(self) -> None:
        for number in list(self._claims):
            try:
                self.release(number)
            except LeaseLostError:
                self.drop(number)
        self._sweep()
        self.store.finish_deleting()
        self._rows.leave()

    def _see_other_drivers(self) -> None:
        """Catch up with what they have stored; on SQLite this driver is the only one."""
        if not self.record.database.is_sqlite:
            self._trials.see_others(self._claims)


def _kind_of(message: str) -> str:
    """Return an error's last line without its numbers: the same mistake in two trials is one."""
    lines = message.strip().splitlines() or [""]
    return re.sub(r"\d+", "#", lines[-1])


def _told_value(trial: FrozenTrial, state: TrialState, best: int | None) -> float | None:
    """Return what a trial is told with: a pruned one, as Optuna does it, with its last report."""
    if best is None or state is TrialState.FAIL:
        return None
    index = best if state is TrialState.COMPLETE else trial.last_step
    assert index is not None
    return float(trial.intermediate_values[index])
