"""Writes a study's rows in Optuna's tables: each act of a driver is one transaction.

Optuna's storage takes one for every attribute, so a kill could come between two of them. The tables
and how they encode values are those of Optuna 5 (``optuna.storages._rdb.models``), which refuses a
database of another schema when it is opened.
Reading is in ``hpo.storage.stored_trials``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState

from hpo.errors import StudyError
from hpo.proposals import Proposal
from hpo.storage.attributes import CONFIG, CONSTRAINTS, DIGEST, END, INFEASIBLE, LOSSES, REPORT
from hpo.storage.database import Database, Lock
from hpo.storage.leases import LEASES, Leases, insert_into
from hpo.storage.stored_trials import (
    ATTRIBUTES,
    FINISHED,
    PARAMS,
    REPORTS,
    STUDIES,
    TRIALS,
    USER_ATTRIBUTES,
    VALUES,
)

_T = TypeVar("_T")

_FINITE = models.TrialValueModel.TrialValueType.FINITE
_FINITE_REPORT = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE


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

    def insert(self, number: int, proposal: Proposal) -> int | None:
        """Store a proposal as a running trial that this driver holds, under epoch 1.

        Returns:
            The trial's id; None if another driver has stored a trial of this number.
        """
        return self._do(lambda connection: self._insert(connection, number, proposal))

    def _insert(self, connection: sa.Connection, number: int, proposal: Proposal) -> int | None:
        self._database.lock_in(connection, Lock.INSERTING, self._study_id)
        of_number = (TRIALS.c.study_id == STUDIES.c.study_id) & (TRIALS.c.number == number)
        there = connection.execute(
            sa.select(TRIALS.c.trial_id, LEASES.c.owner, LEASES.c.epoch)
            .select_from(STUDIES)
            .join(TRIALS, of_number, isouter=True)
            .join(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id, isouter=True)
            .where(STUDIES.c.study_id == self._study_id)
        ).first()
        if there is None:
            raise StudyError(
                "the study was deleted while this driver was away; it has nothing left."
            )
        if there.trial_id is not None:
            is_ours = (there.owner, there.epoch) == (self._leases.owner, 1)
            return int(there.trial_id) if is_ours else None
        trial_id = connection.execute(
            TRIALS.insert()
            .values(
                number=number,
                study_id=self._study_id,
                state=TrialState.RUNNING,
                datetime_start=self._leases.utc,
            )
            .returning(TRIALS.c.trial_id)
        ).scalar_one()
        self._insert_proposal(connection, trial_id, proposal)
        assert self._leases.claim(connection, trial_id) == 1
        return int(trial_id)

    def _insert_proposal(
        self, connection: sa.Connection, trial_id: int, proposal: Proposal
    ) -> None:
        params = [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": proposal.distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(proposal.distributions[name]),
            }
            for name, value in proposal.params.items()
        ]
        if params:
            connection.execute(PARAMS.insert(), params)
        attributes = {
            **proposal.system_attrs,
            CONFIG: proposal.config,
            DIGEST: proposal.digest,
        }
        rows = [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for key, value in attributes.items()
        ]
        connection.execute(ATTRIBUTES.insert(), rows)

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
            unfinished = TRIALS.c.state.not_in(FINISHED)
            running = TRIALS.update().where(TRIALS.c.trial_id == trial_id, unfinished)
            if connection.execute(running.values(state=TrialState.RUNNING)).rowcount == 0:
                connection.rollback()
                return None
            return epoch

        return self._do(act)

    def report(
        self, trial_id: int, epoch: int, validation: int, said: Mapping[str, Any], value: float
    ) -> None:
        """Store a validation: its value for Optuna, and all that the trainer said of it."""
        with_value = (
            insert_into(self._database, REPORTS)
            .values(
                trial_id=trial_id,
                step=validation,
                intermediate_value=value,
                intermediate_value_type=_FINITE_REPORT,
            )
            .on_conflict_do_nothing()
            .returning(REPORTS.c.step)
        )

        def act(connection: sa.Connection) -> None:
            self._leases.hold(connection, trial_id, epoch)
            if connection.execute(with_value).first() is not None:  # what is said stays as it is
                self._put(connection, ATTRIBUTES, trial_id, {f"{REPORT}{validation}": said})

        self._do(act)

    def note_losses(self, trial_id: int, epoch: int, losses: Sequence[str]) -> None:
        """Store why a trial's process or node was lost, each time."""

        def act(connection: sa.Connection) -> None:
            self._leases.hold(connection, trial_id, epoch)
            self._put(connection, ATTRIBUTES, trial_id, {LOSSES: list(losses)})

        self._do(act)

    def end(
        self,
        trial_id: int,
        epoch: int,
        state: TrialState,
        value: float | None,
        end: Mapping[str, Any],
        *,
        is_infeasible: bool,
    ) -> None:
        """Store how a trial ended, and the value that samplers learn from."""
        attributes: dict[str, Any] = {END: end}
        if is_infeasible:
            attributes[CONSTRAINTS] = INFEASIBLE
        shown = {"ended": end["reason"]}
        if end["message"]:
            shown["message"] = end["message"][:2000]

        def act(connection: sa.Connection) -> None:
            self._leases.hold(connection, trial_id, epoch)
            stored = sa.select(TRIALS.c.state).where(TRIALS.c.trial_id == trial_id)
            if connection.execute(stored).scalar_one() in FINISHED:
                return  # by this very driver, before a fault that came behind its commit
            self._put(connection, ATTRIBUTES, trial_id, attributes)
            self._put(connection, USER_ATTRIBUTES, trial_id, shown)
            if value is not None:
                told = {"trial_id": trial_id, "objective": 0, "value": value}
                connection.execute(VALUES.insert().values(**told, value_type=_FINITE))
            ended = TRIALS.update().where(TRIALS.c.trial_id == trial_id)
            connection.execute(ended.values(state=state, datetime_complete=self._leases.utc))

        self._do(act)

    def release(self, trial_id: int, epoch: int) -> None:
        """Hand a trial back, to be claimed by anyone at once; one that has ended stays as it is."""

        def act(connection: sa.Connection) -> None:
            self._leases.hold(connection, trial_id, epoch)
            unfinished = TRIALS.c.state.not_in(FINISHED)
            waiting = TRIALS.update().where(TRIALS.c.trial_id == trial_id, unfinished)
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

    def _put(
        self,
        connection: sa.Connection,
        table: sa.Table,
        trial_id: int,
        attributes: Mapping[str, Any],
    ) -> None:
        for key, value in attributes.items():
            text = json.dumps(value)
            connection.execute(
                insert_into(self._database, table)
                .values(trial_id=trial_id, key=key, value_json=text)
                .on_conflict_do_update(
                    index_elements=[table.c.trial_id, table.c.key], set_={"value_json": text}
                )
            )

    def _do(self, action: Callable[[sa.Connection], _T]) -> _T:
        return self._database.write(action)
