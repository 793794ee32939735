"""Makes and removes a study's own rows, each in one transaction: a kill leaves all of them or none.

The rows of its trials are written by ``hpo.storage.rows``.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any, cast

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.study import StudyDirection

from hpo.storage.attributes import CREATED
from hpo.storage.database import Database, Lock
from hpo.storage.leases import DRIVERS, LEASES
from hpo.storage.stored_trials import (
    ATTRIBUTES,
    PARAMS,
    REPORTS,
    STUDIES,
    TRIALS,
    USER_ATTRIBUTES,
    VALUES,
)

DIRECTIONS = cast(sa.Table, models.StudyDirectionModel.__table__)
STUDY_ATTRIBUTES = cast(sa.Table, models.StudySystemAttributeModel.__table__)
STUDY_USER_ATTRIBUTES = cast(sa.Table, models.StudyUserAttributeModel.__table__)
HEARTBEATS = cast(sa.Table, models.TrialHeartbeatModel.__table__)


_ATTRIBUTE = sa.select(STUDY_ATTRIBUTES.c.value_json).where(
    STUDY_ATTRIBUTES.c.study_id == sa.bindparam("study_id"),
    STUDY_ATTRIBUTES.c.key == sa.bindparam("key"),
)


def study_attribute(database: Database, study_id: int, key: str) -> Any:
    """Return an attribute of a study; None if it has none of that name."""
    rows = database.ask(_ATTRIBUTE, {"study_id": study_id, "key": key})
    return json.loads(rows[0].value_json) if rows else None


def insert_study(
    database: Database, name: str, direction: StudyDirection, attributes: Mapping[str, Any]
) -> int | None:
    """Store a new study.

    Returns:
        Its id; None if there is one of this name.
    """
    token = json.dumps(uuid.uuid4().hex)  # tells ours from another's if the answer is lost
    created = STUDY_ATTRIBUTES.alias()

    def act(connection: sa.Connection) -> int | None:
        database.lock_in(connection, Lock.OPENING, 0)
        there = connection.execute(
            sa.select(STUDIES.c.study_id, created.c.value_json)
            .join(
                created,
                (created.c.study_id == STUDIES.c.study_id) & (created.c.key == CREATED),
                isouter=True,
            )
            .where(STUDIES.c.study_name == name)
        ).first()
        if there is not None:
            return int(there.study_id) if there.value_json == token else None
        inserted = STUDIES.insert().values(study_name=name).returning(STUDIES.c.study_id)
        study_id = int(connection.execute(inserted).scalar_one())
        connection.execute(
            DIRECTIONS.insert().values(study_id=study_id, objective=0, direction=direction)
        )
        texts = {key: json.dumps(value) for key, value in attributes.items()}
        rows = [
            {"study_id": study_id, "key": key, "value_json": text}
            for key, text in {**texts, CREATED: token}.items()
        ]
        connection.execute(STUDY_ATTRIBUTES.insert(), rows)
        return study_id

    return database.write(act)


def delete_study(connection: sa.Connection, study_id: int) -> None:
    """Remove a study and its trials."""
    trials = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    of_trials = (LEASES, HEARTBEATS, PARAMS, ATTRIBUTES, USER_ATTRIBUTES, VALUES, REPORTS)
    for table in of_trials:
        connection.execute(table.delete().where(table.c.trial_id.in_(trials)))
    of_study = (DRIVERS, TRIALS, DIRECTIONS, STUDY_ATTRIBUTES, STUDY_USER_ATTRIBUTES, STUDIES)
    for table in of_study:
        connection.execute(table.delete().where(table.c.study_id == study_id))
