"""What a server is told of a trial by one statement: its lease, and what is written under it.

On a server most of a write's cost is its round trips: a transaction of four acts has six. SQLite has
none, and no such statements; there ``hpo.storage.rows`` does the same in a transaction.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.dialects import postgresql, sqlite

from hpo.storage.database import Database
from hpo.storage.leases import Leases, insert_into
from hpo.storage.stored_trials import (
    ATTRIBUTES,
    REPORTS,
    SINCE,
    TRIALS,
    UNFINISHED,
    USER_ATTRIBUTES,
    VALUES,
    local,
)

FINITE = models.TrialValueModel.TrialValueType.FINITE
FINITE_REPORT = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE

_HELD = -1
"""In place of a number of reports: the row that says that a trial is held."""


def upsert(database: Database, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """Return what sets attributes of a trial, those that it has too."""
    insert = insert_into(database, table)
    return insert.on_conflict_do_update(
        index_elements=[table.c.trial_id, table.c.key],
        set_={"value_json": insert.excluded.value_json},
    )


class AtOnce:
    """Writes of trials that a driver holds. Each may be repeated, and raises LeaseLostError."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._database = leases.database
        self._report = self._report_statement()
        self._end = self._end_statement()

    def report(
        self,
        trial_id: int,
        epoch: int,
        filed: Mapping[str, Any],
        said: Mapping[str, Any],
        since: Mapping[str, Any],
    ) -> Sequence[sa.Row[Any]]:
        """Store a validation; return the rows of ``SINCE`` right before, given its parameters."""
        told = {**filed, "said": _texts(said), **since}
        rows = self._ask(self._report, trial_id, epoch, told)
        others = [row for row in rows if row.num_reports != _HELD]
        if len(others) == len(rows):
            raise self._leases.lost()
        return others

    def end(
        self,
        trial_id: int,
        epoch: int,
        state: TrialState,
        value: float | None,
        said: Mapping[str, Any],
        shown: Mapping[str, Any],
    ) -> datetime.datetime:
        """Store how a trial ended, unless it has already; return when."""
        told = {"end_state": state, "told": value, "said": _texts(said), "shown": _texts(shown)}
        rows = self._ask(self._end, trial_id, epoch, told)
        if not rows:
            raise self._leases.lost()
        return local(rows[0].ended_at)

    def _ask(
        self, statement: sa.Executable, trial_id: int, epoch: int, told: Mapping[str, Any]
    ) -> Sequence[sa.Row[Any]]:
        return self._database.ask(statement, {"held_id": trial_id, "held_epoch": epoch, **told})

    def _report_statement(self) -> sa.Executable:
        held = self._leases.held()
        names = ("step", "intermediate_value")
        values = [sa.bindparam(name, type_=REPORTS.c[name].type) for name in names]
        kind = sa.literal(FINITE_REPORT, REPORTS.c.intermediate_value_type.type)
        filed = (
            insert_into(self._database, REPORTS)
            .from_select(
                ["trial_id", *names, "intermediate_value_type"],
                sa.select(held.c.trial_id, *values, kind),
            )
            .on_conflict_do_nothing()  # said once is said
            .returning(REPORTS.c.trial_id)
            .cte("filed")
        )
        told = sa.select(
            held.c.trial_id,
            sa.literal(None, TRIALS.c.state.type).label("state"),
            sa.literal(_HELD).label("num_reports"),
        )
        return sa.union_all(told, *SINCE.selects).add_cte(self._put(ATTRIBUTES, filed, "said"))

    def _end_statement(self) -> sa.Select[Any]:
        held = self._leases.held()
        ended = (
            TRIALS.update()
            .where(TRIALS.c.trial_id == held.c.trial_id, UNFINISHED)
            .values(
                state=sa.bindparam("end_state", type_=TRIALS.c.state.type),
                datetime_complete=self._leases.utc,
            )
            .returning(TRIALS.c.trial_id, TRIALS.c.datetime_complete)
            .cte("ended")
        )
        value = sa.cast(sa.bindparam("told"), sa.Float(53))
        of_value = sa.select(
            ended.c.trial_id, sa.literal(0), value, sa.literal(FINITE, VALUES.c.value_type.type)
        )
        told = (
            insert_into(self._database, VALUES)
            .from_select(
                ["trial_id", "objective", "value", "value_type"],
                of_value.where(value.is_not(None)),
            )
            .returning(VALUES.c.trial_id)
            .cte("told")
        )
        # By this very driver, if it has ended before: a fault came behind its commit.
        ended_at = sa.func.coalesce(ended.c.datetime_complete, TRIALS.c.datetime_complete)
        return (
            sa.select(ended_at.label("ended_at"))
            .select_from(
                held.join(TRIALS, TRIALS.c.trial_id == held.c.trial_id).outerjoin(
                    ended, ended.c.trial_id == held.c.trial_id
                )
            )
            .add_cte(
                told,
                self._put(ATTRIBUTES, ended, "said"),
                self._put(USER_ATTRIBUTES, ended, "shown"),
            )
        )

    def _put(self, table: sa.Table, trial: sa.CTE, name: str) -> sa.CTE:
        """Return the part of a statement that sets attributes of a trial: a parameter of this name."""
        given = sa.cast(sa.bindparam(name, type_=sa.Text), postgresql.JSON)
        pairs = sa.func.json_each_text(given).table_valued("key", "value")
        rows = sa.select(trial.c.trial_id, pairs.c.key, pairs.c.value).select_from(
            trial.join(pairs, sa.true())
        )
        put = upsert(self._database, table).from_select(["trial_id", "key", "value_json"], rows)
        return put.returning(table.c.key).cte(name)


def _texts(attributes: Mapping[str, Any]) -> str:
    """Return attributes as Optuna stores them, a text of JSON each, in one text of JSON."""
    return json.dumps({key: json.dumps(value) for key, value in attributes.items()})
