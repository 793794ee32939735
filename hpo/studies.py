"""Studies as records: made, found, listed, described, deleted. Nothing here runs a trial.

The driver's part is ``hpo.study``. Tables for people are made from SQL aggregates, because loading
ten thousand trials as objects takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.checkpoints import CheckpointStore
from hpo.errors import NoDatabaseError, StudyError
from hpo.spec import StudySpec
from hpo.storage.attributes import CONFIG, END, METRIC_NAMES, REPORT, SPEC, STOP, VERSION
from hpo.storage.database import Database, Lock, shown
from hpo.storage.row_shapes import readable, stored_spec, this_version
from hpo.storage.rows import Rows
from hpo.storage.stored_trials import StoredTrials
from hpo.storage.study_rows import delete_study, insert_study, study_attribute
from hpo.storage.summary import Summary, counts_by_study
from search_spaces.problems import did_you_mean

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

    @property
    def stored(self) -> StoredTrials:
        """The trials' rows."""
        return StoredTrials(self.database, self.study_id, self.name)

    def trials(self, numbers: Sequence[int] | None = None) -> list[TrialRecord]:
        """Return all trials by number, or some of them."""
        stored = self.stored.all() if numbers is None else self.stored.numbered(numbers)
        return [trial_record(trial, self.spec) for trial in stored]

    def best(self) -> TrialRecord | None:
        """Return the best trial that had its full budget (or ended by its own patience)."""
        number = self.summary.best(self.spec.sign)
        return None if number is None else self.trials([number])[0]

    def num_trials(self) -> int:
        """Return the number of trials, whatever their state."""
        return sum(self.summary.counts().values())

    @property
    def summary(self) -> Summary:
        """What SQL alone says of the trials."""
        return Summary(self.database, self.study_id, self.name)

    def update_spec(self, spec: StudySpec) -> StudyRecord:
        """Store an edited spec."""
        assert spec.study == self.name
        self._set(VERSION, this_version())
        self._set(SPEC, spec.model_dump(mode="json"))
        return StudyRecord(self.database, self.study_id, spec)

    def request_stop(self) -> None:
        """Ask every driver that runs this study now to save and leave."""
        self._set(STOP, self._rows().now())

    def stop_requested(self, since: float) -> bool:
        """Return whether somebody has asked since a time by the database's clock."""
        asked_at = study_attribute(self.database, self.study_id, STOP)
        return float(asked_at or 0.0) >= since

    def is_driven(self) -> bool:
        """Return whether a driver runs this study now, as far as anyone can tell."""
        try:
            lock = self.database.driver_lock(self.name)
        except StudyError:
            return True
        if lock is None:
            return self._rows().any_driver()
        lock.release()
        return False

    def _rows(self) -> Rows:
        """Return the rows as nobody's driver: good for looking only."""
        return Rows(self.database, self.study_id, "", 0.0)

    def _set(self, key: str, value: Any) -> None:
        storage = self.database.storage
        self.database.guarded(lambda: storage.set_study_system_attr(self.study_id, key, value))

    def delete(self) -> None:
        """Remove the study's rows. Its files are the caller's business.

        Raises:
            StudyError: A driver runs it.
        """
        driving = StudyError(
            f"the study {self.name!r} is being run. Type `hpo stop {self.name}` first; the lease of a "
            f"driver that died on a server runs out after {self.spec.lease_s:g} s."
        )

        def act(connection: sa.Connection) -> None:
            self.database.lock_in(connection, Lock.INSERTING, self.study_id)
            if self._rows().is_driven(connection):
                raise driving
            delete_study(connection, self.study_id)

        try:
            lock = self.database.driver_lock(self.name)
        except StudyError:
            raise driving from None
        try:
            self.database.write(act)
        finally:
            if lock is not None:
                lock.release()


def create_study(spec: StudySpec, url: str) -> StudyRecord:
    """Store a new study.

    Raises:
        StudyError: One of this name exists, or its folder holds checkpoints of another one.
        StorageError: The database cannot be used.
    """
    database = Database(url)
    store = CheckpointStore.of_study(spec.output_dir, spec.study)
    store.check()
    direction = StudyDirection.MINIMIZE if spec.direction == "minimize" else StudyDirection.MAXIMIZE
    exists = StudyError(
        f"the study {spec.study!r} exists in {shown(url)}. To go on with it type "
        f"`hpo resume {spec.study}`; for a new one change 'study:' in the file or give --study; "
        f"to remove it type `hpo delete {spec.study}`."
    )
    if any(name == spec.study for name, _ in counts_by_study(database)):
        raise exists
    if store.trials():  # its trials would go on from them
        raise StudyError(
            f"{store.shown()} holds the checkpoints of another study {spec.study!r}, which is not in "
            f"{shown(url)}. Remove the folder, or give another 'study:' or 'output_dir:'."
        )
    attributes = {
        METRIC_NAMES: [spec.metric],
        SPEC: spec.model_dump(mode="json"),
        VERSION: this_version(),
    }
    study_id = insert_study(database, spec.study, direction, attributes)
    if study_id is None:
        raise exists
    return StudyRecord(database, study_id, spec)


def open_study(name: str, url: str) -> StudyRecord:
    """Return a stored study.

    Raises:
        StudyError: There is none of this name, or it was not made by `hpo`.
        StorageError: The database cannot be used.
    """
    database = Database(url, create=False)
    storage = database.storage
    try:
        study_id = database.guarded(lambda: storage.get_study_id_from_name(name))
    except KeyError:
        known = [name for name, _ in counts_by_study(database)]
        listed = f"It has: {', '.join(sorted(known))}." if known else "It has no study at all."
        raise StudyError(
            f"there is no study {name!r} in {shown(url)}.{did_you_mean(name, known)} {listed} "
            f"Another database is named by --storage."
        ) from None
    with readable(name, shown(url)):
        attrs = database.guarded(lambda: storage.get_study_system_attrs(study_id))
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
    return [StudySummary(name, sum(c.values()), c) for name, c in counts_by_study(database)]


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
    complete = [t for t in trials if t.state == TrialState.COMPLETE.name and t.value is not None]
    return min(complete, key=lambda t: (spec.sign * (t.value or 0.0), t.number), default=None)
