"""Writes a study's rows in Optuna's tables: each act of a driver is one transaction.

Optuna's storage takes one for every attribute, so a kill could come between two of them. The tables
and how they encode values are those of Optuna 5 (``optuna.storages._rdb.models``), which refuses a
database of another schema when it is opened.
Reading is in ``hpo.storage.stored_trials``.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import StudyError
from hpo.proposals import Proposal
from hpo.storage.at_once import FINITE, FINITE_REPORT, AtOnce, upsert
from hpo.storage.attributes import CONFIG, CONSTRAINTS, DIGEST, END, LOSSES, REPORT
from hpo.storage.database import Database, Lock
from hpo.storage.leases import LEASES, Leases, insert_into
from hpo.storage.stored_trials import (
    ATTRIBUTES,
    PARAMS,
    REPORTS,
    STUDIES,
    TRIALS,
    UNFINISHED,
    USER_ATTRIBUTES,
    VALUES,
    changed_ids,
    distribution,
    local,
    newer,
    since_when,
)

_T = TypeVar("_T")


class Rows:
    """What one driver writes of one study. A fault that may pass is waited for.

    Every write of a trial that the driver holds raises LeaseLostError, and writes nothing, if
    another driver has claimed the trial since. Every write may be repeated: a fault can come behind
    its commit.
    """

    def __init__(self, database: Database, study_id: int, owner: str, lease_s: float) -> None:
        self._database = database
        self._study_id = study_id
        self._leases = Leases(database, owner, lease_s)
        self._report = _insert_report(database)
        self._at_once = None if database.is_sqlite else AtOnce(self._leases)
        self._put_said = upsert(database, ATTRIBUTES)
        self._put_shown = upsert(database, USER_ATTRIBUTES)

    def insert(self, number: int, newest_id: int, proposal: Proposal) -> FrozenTrial | None:
        """Store a proposal as a running trial that this driver holds, under epoch 1.

        Args:
            number: The trial's.
            newest_id: Of the trial before; later ones have greater ids.
            proposal: What to store.

        Returns:
            The trial as it is read; None if another driver has stored a trial of this number.
        """
        rows = _rows_of(proposal)
        found = self._do(lambda connection: self._insert(connection, number, newest_id, *rows))
        return None if found is None else _as_read(*found, number, *rows)

    def _insert(
        self,
        connection: sa.Connection,
        number: int,
        newest_id: int,
        params: Sequence[Mapping[str, Any]],
        attributes: Sequence[Mapping[str, Any]],
    ) -> tuple[int, datetime.datetime] | None:
        self._database.lock_in(connection, Lock.INSERTING, self._study_id)
        asked = {"study_id": self._study_id, "number": number, "newest_id": newest_id}
        there = connection.execute(_THERE, asked).first()
        if there is None:
            raise StudyError(
                "the study was deleted while this driver was away; it has nothing left."
            )
        if there.trial_id is not None:
            is_ours = (there.owner, there.epoch) == (self._leases.owner, 1)
            return (int(there.trial_id), there.datetime_start) if is_ours else None
        trial_id, began = connection.execute(
            TRIALS.insert()
            .values(
                number=number,
                study_id=self._study_id,
                state=TrialState.RUNNING,
                datetime_start=self._leases.utc,
            )
            .returning(TRIALS.c.trial_id, TRIALS.c.datetime_start)
        ).one()
        if params:
            connection.execute(PARAMS.insert(), [{"trial_id": trial_id, **row} for row in params])
        said = [{"trial_id": trial_id, **row} for row in attributes]
        connection.execute(ATTRIBUTES.insert(), said)
        self._leases.begin(connection, trial_id)
        return int(trial_id), began

    def free(self, trial_ids: Sequence[int]) -> list[int]:
        """Return those of some trials that a claim may get, in their order."""
        if self._database.is_sqlite or not trial_ids:
            return list(trial_ids)
        return self._database.look(lambda connection: self._leases.free(connection, trial_ids))

    def claim(self, trial_id: int) -> int | None:
        """Take over an interrupted trial: it is this driver's, and RUNNING.

        Returns:
            The epoch; None if another driver holds it or has ended it.
        """

        def act(connection: sa.Connection) -> int | None:
            epoch = self._leases.claim(connection, trial_id)
            if epoch is None:
                return None
            running = TRIALS.update().where(TRIALS.c.trial_id == trial_id, UNFINISHED)
            if connection.execute(running.values(state=TrialState.RUNNING)).rowcount == 0:
                connection.rollback()
                return None
            return epoch

        return self._do(act)

    def report(
        self,
        trial_id: int,
        epoch: int,
        validation: int,
        said: Mapping[str, Any],
        value: float,
        newest_id: int,
        unfinished: Mapping[int, int],
    ) -> list[int]:
        """Store a validation: its value for Optuna, and all that the trainer said of it.

        Args:
            trial_id: Of a trial that this driver holds.
            epoch: Under which it does.
            validation: Its index.
            said: What it said.
            value: What samplers and pruners see of it.
            newest_id: Of the newest trial that this driver knows.
            unfinished: Ids of those of other drivers -> how many reports this one knows.

        Returns:
            The ids of other drivers' trials of which there was news before; on SQLite there are none.
        """
        filed = {"step": validation, "intermediate_value": value}
        attributes = {f"{REPORT}{validation}": said}
        if self._at_once is not None:
            since = since_when(self._study_id, newest_id, unfinished)
            rows = self._at_once.report(trial_id, epoch, filed, attributes, since)
            return changed_ids(rows, newest_id, unfinished)

        def act(connection: sa.Connection) -> None:
            self._leases.hold(connection, trial_id, epoch)
            stored = connection.execute(self._report, {"trial_id": trial_id, **filed})
            if stored.first() is not None:  # said once is said
                self._put(connection, self._put_said, trial_id, attributes)

        self._do(act)
        return []

    def note_losses(self, trial_id: int, epoch: int, losses: Sequence[str]) -> None:
        """Store why a trial's process or node was lost, each time."""

        def act(connection: sa.Connection) -> None:
            self._leases.hold(connection, trial_id, epoch)
            self._put(connection, self._put_said, trial_id, {LOSSES: list(losses)})

        self._do(act)

    def end(
        self,
        trial_id: int,
        epoch: int,
        state: TrialState,
        value: float | None,
        end: Mapping[str, Any],
        constraints: Sequence[float] | None = None,
    ) -> datetime.datetime:
        """Store how a trial ended, and the value that samplers learn from; return when."""
        attributes: dict[str, Any] = {END: end}
        if constraints is not None:
            attributes[CONSTRAINTS] = constraints
        shown = {"ended": end["reason"]}
        if end["message"]:
            shown["message"] = end["message"][:2000]
        if self._at_once is not None:
            return self._at_once.end(trial_id, epoch, state, value, attributes, shown)

        def act(connection: sa.Connection) -> datetime.datetime:
            self._leases.hold(connection, trial_id, epoch)
            ended = connection.execute(
                TRIALS.update()
                .where(TRIALS.c.trial_id == trial_id, UNFINISHED)
                .values(state=state, datetime_complete=self._leases.utc)
                .returning(TRIALS.c.datetime_complete)
            ).scalar()
            if ended is None:  # by this very driver, before a fault that came behind its commit
                then = sa.select(TRIALS.c.datetime_complete).where(TRIALS.c.trial_id == trial_id)
                return local(connection.execute(then).scalar_one())
            self._put(connection, self._put_said, trial_id, attributes)
            self._put(connection, self._put_shown, trial_id, shown)
            if value is not None:
                told = {"trial_id": trial_id, "objective": 0, "value": value}
                connection.execute(VALUES.insert().values(**told, value_type=FINITE))
            return local(ended)

        return self._do(act)

    def release(self, trial_id: int, epoch: int) -> None:
        """Hand a trial back, to be claimed by anyone at once; one that has ended stays as it is."""

        def act(connection: sa.Connection) -> None:
            self._leases.hold(connection, trial_id, epoch)
            waiting = TRIALS.update().where(TRIALS.c.trial_id == trial_id, UNFINISHED)
            connection.execute(waiting.values(state=TrialState.WAITING))
            self._leases.let_go(connection, trial_id, epoch)

        self._do(act)

    # Staying alive

    def renew(self, claims: Sequence[tuple[int, int]]) -> list[int]:
        """Renew this driver's own lease and those of its trials, (id, epoch) each.

        Returns:
            The ids of those that are lost to other drivers.
        """

        def act(connection: sa.Connection) -> list[int]:
            self._leases.breathe(connection, self._study_id)
            return self._leases.renew(connection, claims)

        return self._do(act)

    def leave(self) -> None:
        """Say that this driver has left."""
        self._do(self._leases.leave)

    def now(self) -> float:
        """Return seconds since 1970 by the database's clock."""
        return self._do(
            lambda connection: float(connection.execute(sa.select(self._leases.now)).scalar_one())
        )

    def any_driver(self) -> bool:
        """Return whether any driver of the study breathes."""
        return self._do(lambda connection: self._leases.any_driver(connection, self._study_id))

    def is_driven(self, connection: sa.Connection) -> bool:
        """Return whether any driver of the study breathes, as part of a transaction."""
        return self._leases.any_driver(connection, self._study_id)

    # Ways

    @staticmethod
    def _put(
        connection: sa.Connection,
        upsert: sa.Insert,
        trial_id: int,
        attributes: Mapping[str, Any],
    ) -> None:
        rows = [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for key, value in attributes.items()
        ]
        connection.execute(upsert, rows if len(rows) > 1 else rows[0])

    def _do(self, action: Callable[[sa.Connection], _T]) -> _T:
        return self._database.write(action)


_THERE = (
    sa.select(TRIALS.c.trial_id, TRIALS.c.datetime_start, LEASES.c.owner, LEASES.c.epoch)
    .select_from(STUDIES)
    .join(
        TRIALS,
        (TRIALS.c.study_id + 0 == STUDIES.c.study_id)
        & newer(sa.bindparam("newest_id"))
        & (TRIALS.c.number == sa.bindparam("number")),
        isouter=True,
    )
    .join(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id, isouter=True)
    .where(STUDIES.c.study_id == sa.bindparam("study_id"))
)
"""Whether there is a trial of a number, and whose. No row: the study is gone.

By the primary key, as ``SINCE``: Optuna has no index of numbers, and to look at all trials would take
milliseconds.
"""


def _insert_report(database: Database) -> sa.Insert:
    """Return what stores a validation's value, once, and returns its step if it did."""
    insert = insert_into(database, REPORTS).values(intermediate_value_type=FINITE_REPORT)
    return insert.on_conflict_do_nothing().returning(REPORTS.c.step)


def _rows_of(proposal: Proposal) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of a proposal's parameters and attributes, without the trial's id."""
    params = [
        {
            "param_name": name,
            "param_value": proposal.distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(proposal.distributions[name]),
        }
        for name, value in proposal.params.items()
    ]
    attributes = {**proposal.system_attrs, CONFIG: proposal.config, DIGEST: proposal.digest}
    return params, [
        {"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()
    ]


def _as_read(
    trial_id: int,
    began: datetime.datetime,
    number: int,
    params: Sequence[Mapping[str, Any]],
    attributes: Sequence[Mapping[str, Any]],
) -> FrozenTrial:
    """Return a trial of these rows, as ``hpo.storage.stored_trials`` would read it."""
    ranges = {row["param_name"]: distribution(row["distribution_json"]) for row in params}
    values = {row["param_name"]: row["param_value"] for row in params}
    return FrozenTrial(
        number=number,
        trial_id=trial_id,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=local(began),
        datetime_complete=None,
        params={name: ranges[name].to_external_repr(value) for name, value in values.items()},
        distributions=ranges,
        user_attrs={},
        system_attrs={row["key"]: json.loads(row["value_json"]) for row in attributes},
        intermediate_values={},
    )
