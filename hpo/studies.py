"""Studies as records: made, found, listed, described, deleted. Nothing here runs a trial.

The driver's part is ``hpo.study``. Tables for people are made from SQL aggregates, because loading
ten thousand trials as objects takes seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.checkpoints import CheckpointStore
from hpo.database import Database, guarded, shown
from hpo.errors import NoDatabaseError, StudyError
from hpo.leases import LEASES, Leases
from hpo.spec import StudySpec
from hpo.stored_rows import (
    CONFIG,
    END,
    REPORT,
    check_trial,
    readable,
    stored_spec,
    this_version,
)
from search_spaces.problems import did_you_mean

SPEC = "hpo:spec"
STOP = "hpo:stop"
VERSION = "hpo:version"  # of the hpo that wrote the spec last
CONSTRAINTS = "constraints"  # Optuna's own, in the form that optuna-dashboard 0.21 reads too
INFEASIBLE = [1.0]  # of a trial that fits on no device; of Optuna's samplers TPE minds it
METRIC_NAMES = "study:metric_names"  # Optuna's own: the dashboard writes it at the axes

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class TrialRecord:
    """One trial as it is stored.

    Attributes:
        number: For life, from 0.
        state: WAITING, RUNNING, COMPLETE, PRUNED or FAIL.
        value: Of the best validation; None without one.
        best_step: Optimizer steps at the best validation; None without one.
        step: Optimizer steps at the newest validation; 0 without one.
        params: What was searched.
        config: The trainer's whole config.
        reports: Validation index -> step and metrics, in order.
        reason: Why it ended: finished, stopped_early, pruned, diverged, out_of_memory, failed (by its own
            error), lost (with its process or node, too often); None if it has not.
        message: The error of a trial that diverged, failed or was out of memory.
        notes: What the trainer had to say of its data and model, each once.
        seconds: From its first start to its end, or to now.
    """

    number: int
    state: str
    value: float | None
    best_step: int | None
    step: int
    params: dict[str, Any]
    config: dict[str, Any]
    reports: dict[int, dict[str, Any]]
    reason: str | None
    message: str | None
    seconds: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudySummary:
    """One line of `hpo list`."""

    name: str
    num_trials: int
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyRecord:
    """A study in its database.

    Attributes:
        database: Open.
        study_id: Optuna's.
        spec: As stored.
    """

    database: Database
    study_id: int
    spec: StudySpec

    @property
    def name(self) -> str:
        """The study's name."""
        return self.spec.study

    def trials(self) -> list[TrialRecord]:
        """Return all trials by number."""
        return [trial_record(trial, self.spec) for trial in self._stored()]

    def best(self) -> TrialRecord | None:
        """Return the best trial that had its full budget (or ended by its own patience)."""
        return best_of(self.trials(), self.spec)

    def _stored(self) -> list[FrozenTrial]:
        """Return all trials as Optuna has them, by number, each of a shape that is known."""
        storage = self.database.storage
        with readable(self.name, shown(self.database.url)):
            stored = guarded(
                self.database.url, lambda: storage.get_all_trials(self.study_id, deepcopy=False)
            )
            stored = sorted(stored, key=lambda trial: trial.number)
        for trial in stored:
            check_trial(self.name, trial)
        return stored

    def update_spec(self, spec: StudySpec) -> StudyRecord:
        """Store an edited spec."""
        assert spec.study == self.name
        self._set(VERSION, this_version())
        self._set(SPEC, spec.model_dump(mode="json"))
        return StudyRecord(self.database, self.study_id, spec)

    def request_stop(self) -> None:
        """Ask every driver of this study to save and leave."""
        self._set(STOP, time.time())

    def clear_stop(self) -> None:
        """Forget an earlier request."""
        self._set(STOP, None)

    def stop_requested(self) -> bool:
        """Return whether somebody has asked."""
        storage = self.database.storage
        attrs = guarded(self.database.url, lambda: storage.get_study_system_attrs(self.study_id))
        return attrs.get(STOP) is not None

    def is_driven(self) -> bool:
        """Return whether a driver runs this study now, as far as anyone can tell."""
        try:
            lock = self.database.driver_lock(self.name)
        except StudyError:
            return True
        if lock is not None:
            lock.release()
            return False
        unfinished = [t._trial_id for t in self._stored() if not t.state.is_finished()]
        return Leases(self.database, "", 0.0).any_alive(unfinished)

    def _set(self, key: str, value: Any) -> None:
        storage = self.database.storage
        guarded(self.database.url, lambda: storage.set_study_system_attr(self.study_id, key, value))

    def delete(self) -> None:
        """Remove the study's rows. Its files are the caller's business.

        Raises:
            StudyError: A driver runs it.
        """
        if self.is_driven():
            raise StudyError(
                f"the study {self.name!r} is being run. Type `hpo stop {self.name}` first; the lease "
                f"of a driver that died on a server runs out after {self.spec.lease_s:g} s."
            )
        ids = [trial._trial_id for trial in self._stored()]
        with readable(self.name, shown(self.database.url)):
            self.database.storage.delete_study(self.study_id)
        with self.database.engine.begin() as connection:
            for trial_id in ids:
                connection.execute(LEASES.delete().where(LEASES.c.trial_id == trial_id))


def create_study(spec: StudySpec, url: str) -> StudyRecord:
    """Store a new study.

    Raises:
        StudyError: One of this name exists, or its folder holds checkpoints of another one.
        StorageError: The database cannot be used.
    """
    database = Database(url)
    folder = Path(spec.output_dir) / spec.study
    direction = StudyDirection.MINIMIZE if spec.direction == "minimize" else StudyDirection.MAXIMIZE
    try:
        study_id = guarded(url, lambda: database.storage.create_new_study([direction], spec.study))
        if CheckpointStore(folder).trials():  # its trials would go on from them
            database.storage.delete_study(study_id)
            raise StudyError(
                f"{folder} holds the checkpoints of another study {spec.study!r}, which is not in "
                f"{shown(url)}. Remove the folder, or give another 'study:' or 'output_dir:'."
            )
        database.storage.set_study_system_attr(study_id, METRIC_NAMES, [spec.metric])
        record = StudyRecord(database, study_id, spec)
        return record.update_spec(spec)
    except DuplicatedStudyError:
        raise StudyError(
            f"the study {spec.study!r} exists in {shown(url)}. To go on with it type "
            f"`hpo resume {spec.study}`; for a new one change 'study:' in the file or give --study; "
            f"to remove it type `hpo delete {spec.study}`."
        ) from None


def open_study(name: str, url: str) -> StudyRecord:
    """Return a stored study.

    Raises:
        StudyError: There is none of this name, or it was not made by `hpo`.
        StorageError: The database cannot be used.
    """
    database = Database(url, create=False)
    storage = database.storage
    try:
        study_id = guarded(url, lambda: storage.get_study_id_from_name(name))
    except KeyError:
        known = [study.study_name for study in database.storage.get_all_studies()]
        listed = f"It has: {', '.join(sorted(known))}." if known else "It has no study at all."
        raise StudyError(
            f"there is no study {name!r} in {shown(url)}.{did_you_mean(name, known)} {listed} "
            f"Another database is named by --storage."
        ) from None
    with readable(name, shown(url)):
        attrs = guarded(url, lambda: storage.get_study_system_attrs(study_id))
    if attrs.get(SPEC) is None:
        raise StudyError(f"the study {name!r} in {shown(url)} was not made by `hpo run`.")
    spec = stored_spec(name, shown(url), attrs[SPEC], attrs.get(VERSION))
    return StudyRecord(database, study_id, spec)


def list_studies(url: str) -> list[StudySummary]:
    """Return the studies of a database with the number of their trials by state."""
    try:
        database = Database(url, create=False)
    except NoDatabaseError:
        return []
    query = sa.text(
        "SELECT s.study_name, t.state, count(t.trial_id) FROM studies s "
        "LEFT JOIN trials t ON t.study_id = s.study_id GROUP BY s.study_name, t.state "
        "ORDER BY s.study_name"
    )
    counts: dict[str, dict[str, int]] = {}

    def read() -> None:
        with database.engine.connect() as connection:
            for name, state, count in connection.execute(query):
                by_state = counts.setdefault(name, {})
                if state is not None:
                    by_state[str(state)] = int(count)

    guarded(url, read)
    return [StudySummary(name, sum(c.values()), c) for name, c in counts.items()]


def trial_record(trial: FrozenTrial, spec: StudySpec) -> TrialRecord:
    """Return what a stored trial says."""
    attrs = trial.system_attrs
    reports = {
        index: dict(attrs.get(f"{REPORT}{index}", {}))
        for index in sorted(trial.intermediate_values)
    }
    best = best_validation(trial, spec)
    end = dict(attrs.get(END) or {})
    notes = [note for said in (*reports.values(), end) for note in said.pop("notes", ())]
    seconds = None
    if trial.datetime_start is not None and trial.datetime_complete is not None:
        seconds = (trial.datetime_complete - trial.datetime_start).total_seconds()
    return TrialRecord(
        number=trial.number,
        state=trial.state.name,
        value=None if best is None else trial.intermediate_values[best],
        best_step=None if best is None else int(reports[best].get("step", 0)),
        step=int(reports[max(reports)].get("step", 0)) if reports else 0,
        params=dict(trial.params),
        config=dict(attrs.get(CONFIG, {})),
        reports=reports,
        reason=end.get("reason"),
        message=end.get("message"),
        seconds=seconds,
        notes=tuple(dict.fromkeys(notes)),
    )


def best_validation(trial: FrozenTrial, spec: StudySpec) -> int | None:
    """Return the index of a trial's best validation, the first of equals."""
    values = trial.intermediate_values
    return min(values, key=lambda index: (spec.sign * values[index], index)) if values else None


def best_of(trials: Sequence[TrialRecord], spec: StudySpec) -> TrialRecord | None:
    """Return the best of the completed trials, the first of equals."""
    ranking = ranked(trials, spec)
    return ranking[0] if ranking else None


def ranked(trials: Sequence[TrialRecord], spec: StudySpec) -> list[TrialRecord]:
    """Return the completed trials, best first."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE.name and t.value is not None]
    return sorted(complete, key=lambda t: (spec.sign * (t.value or 0.0), t.number))
