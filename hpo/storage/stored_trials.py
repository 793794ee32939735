"""Reads trials from Optuna's tables as Optuna's own values: some or all of a study, in five queries.

Optuna's storage takes seconds and half a GiB for ten thousand trials. ``light`` leaves out what only a
trial that still runs needs: the config, and the metrics of each report.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql

from hpo.storage.attributes import CONFIG, REPORT
from hpo.storage.database import Database, shown
from hpo.storage.row_shapes import check_trial, readable

STUDIES = cast(sa.Table, models.StudyModel.__table__)
TRIALS = cast(sa.Table, models.TrialModel.__table__)
PARAMS = cast(sa.Table, models.TrialParamModel.__table__)
ATTRIBUTES = cast(sa.Table, models.TrialSystemAttributeModel.__table__)
USER_ATTRIBUTES = cast(sa.Table, models.TrialUserAttributeModel.__table__)
VALUES = cast(sa.Table, models.TrialValueModel.__table__)
REPORTS = cast(sa.Table, models.TrialIntermediateValueModel.__table__)
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
UNFINISHED = sa.and_(*(TRIALS.c.state != state for state in FINISHED))

distribution = functools.lru_cache(maxsize=1024)(json_to_distribution)
_GREATEST_ID = 2**31 - 1
_value = models.TrialValueModel.stored_repr_to_value
_reported = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value


@dataclass(frozen=True)
class StoredTrials:
    """The trials of one study. A fault that may pass is waited for.

    Attributes:
        database: Open.
        study_id: Optuna's.
        name: The study's.
    """

    database: Database
    study_id: int
    name: str

    def all(self, *, light: bool = False) -> list[FrozenTrial]:
        """Return every trial by number.

        Raises:
            StudyError: What is stored cannot be read.
        """
        return self._read(sa.true(), light=light)

    def changed(self, newest_id: int, unfinished: Mapping[int, int]) -> list[FrozenTrial]:
        """Return the trials that are new, have ended or have reported since, lightly, by number.

        Args:
            newest_id: Of the newest trial that the caller knows; later ones have greater ids.
            unfinished: Ids of those of them that may have changed -> how many reports it knows.
        """
        with readable(self.name, shown(self.database.url)):
            since = since_when(self.study_id, newest_id, unfinished)
            rows = self.database.ask(SINCE, since)
        return self.of(changed_ids(rows, newest_id, unfinished), light=True)

    def numbered(self, numbers: Sequence[int]) -> list[FrozenTrial]:
        """Return the trials of these numbers, by number."""
        return self._read(TRIALS.c.number.in_(numbers), light=False)

    def of(self, ids: Sequence[int], *, light: bool = False) -> list[FrozenTrial]:
        """Return the trials of these ids, by number; costs the same however many others there are."""
        if not ids:
            return []
        return self._read(TRIALS.c.trial_id.in_(ids), light=light)

    def _read(self, which: sa.ColumnElement[bool], *, light: bool) -> list[FrozenTrial]:
        chosen = (TRIALS.c.study_id == self.study_id) & which
        return self._looked(
            lambda connection: _read_trials(connection, chosen, light=light), light=light
        )

    def _looked(
        self, look: Callable[[sa.Connection], list[FrozenTrial]], *, light: bool
    ) -> list[FrozenTrial]:
        """Return what was read when it is of a shape that is known."""
        with readable(self.name, shown(self.database.url)):
            trials = self.database.look(look)
        for trial in trials:
            check_trial(self.name, trial, light=light)
        return trials


def since_when(study_id: int, newest_id: int, unfinished: Mapping[int, int]) -> dict[str, Any]:
    """Return the parameters of ``SINCE``, given what ``StoredTrials.changed`` is."""
    return {"study": study_id, "newest": newest_id, "ids": list(unfinished)}


def changed_ids(
    rows: Sequence[sa.Row[Any]], newest_id: int, unfinished: Mapping[int, int]
) -> list[int]:
    """Return those of the rows of ``SINCE`` of which ``StoredTrials.changed`` tells."""
    return [
        row.trial_id
        for row in rows
        if row.trial_id > newest_id
        or row.state in FINISHED
        or row.num_reports != unfinished[row.trial_id]
    ]


def newer(newest_id: sa.BindParameter[int]) -> sa.ColumnElement[bool]:
    """Return what is true of trials that came later; planners expect few between two bounds."""
    return (TRIALS.c.trial_id > newest_id) & (TRIALS.c.trial_id <= _GREATEST_ID)


SINCE = sa.union_all(
    *(
        sa.select(
            TRIALS.c.trial_id,
            TRIALS.c.state,
            sa.select(sa.func.count())
            .where(REPORTS.c.trial_id == TRIALS.c.trial_id)
            .correlate(TRIALS)
            .scalar_subquery()
            .label("num_reports"),
        ).where(TRIALS.c.study_id + 0 == sa.bindparam("study"), which)
        for which in (
            newer(sa.bindparam("newest")),
            TRIALS.c.trial_id == sa.any_(sa.bindparam("ids", type_=postgresql.ARRAY(sa.Integer))),
        )
    )
)
"""Trials that may have changed: on a server, which other drivers share. It comes with every verdict. So
it is one text, which a server prepares once, however many ids there are; and by the primary key: ``+ 0``
keeps PostgreSQL from going through all trials of the study."""


def _read_trials(
    connection: sa.Connection, chosen: sa.ColumnElement[bool], *, light: bool
) -> list[FrozenTrial]:
    columns = (
        TRIALS.c.trial_id,
        TRIALS.c.number,
        TRIALS.c.state,
        TRIALS.c.datetime_start,
        TRIALS.c.datetime_complete,
    )
    query = sa.select(*columns).where(chosen).order_by(TRIALS.c.number)
    trials = {
        trial_id: FrozenTrial(
            number=number,
            trial_id=trial_id,
            state=state,
            value=None,
            datetime_start=start and local(start),
            datetime_complete=complete and local(complete),
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        for trial_id, number, state, start, complete in connection.execute(query)
    }
    for trial, row in _rows(connection, trials, chosen, PARAMS, PARAMS.c.param_id):
        ranges: BaseDistribution = distribution(row.distribution_json)
        trial.distributions[row.param_name] = ranges
        trial.params[row.param_name] = ranges.to_external_repr(row.param_value)
    heavy = (ATTRIBUTES.c.key == CONFIG) | ATTRIBUTES.c.key.startswith(REPORT, autoescape=True)
    wanted = ~(heavy & TRIALS.c.state.in_(FINISHED)) if light else sa.true()
    for trial, row in _rows(connection, trials, chosen & wanted, ATTRIBUTES):
        trial.system_attrs[row.key] = json.loads(row.value_json)
    for trial, row in _rows(connection, trials, chosen, VALUES):
        trial.values = [_value(row.value, row.value_type)]
    for trial, row in _rows(connection, trials, chosen, REPORTS, REPORTS.c.step):
        value = _reported(row.intermediate_value, row.intermediate_value_type)
        trial.intermediate_values[row.step] = value
    return list(trials.values())


def _rows(
    connection: sa.Connection,
    trials: dict[int, FrozenTrial],
    chosen: sa.ColumnElement[bool],
    table: sa.Table,
    *order: sa.ColumnElement[Any],
) -> Iterator[tuple[FrozenTrial, Any]]:
    """Yield a table's rows with their trials; one that was added since the trials were read is not."""
    columns = [column for column in table.c if not column.primary_key]
    joined = table.join(TRIALS, TRIALS.c.trial_id == table.c.trial_id)
    query = sa.select(*columns).select_from(joined).where(chosen).order_by(*order)
    for row in connection.execute(query):
        trial = trials.get(row.trial_id)
        if trial is not None:
            yield trial, row


def local(stored: datetime.datetime) -> datetime.datetime:
    """Return a stored time, which is UTC, as Optuna shows it: local, without saying so."""
    return stored.replace(tzinfo=datetime.UTC).astimezone().replace(tzinfo=None)
