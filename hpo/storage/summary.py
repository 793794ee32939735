"""What SQL alone says of a study: counts, the best, why trials ended. Takes milliseconds for any size."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.trial import TrialState

from hpo.storage.attributes import END, REPORT
from hpo.storage.database import Database, shown
from hpo.storage.row_shapes import readable
from hpo.storage.stored_trials import ATTRIBUTES, FINISHED, REPORTS, STUDIES, TRIALS, VALUES

_T = TypeVar("_T")


@dataclass(frozen=True)
class Ended:
    """How a trial ended.

    Attributes:
        number: Of the trial.
        reason: finished, stopped_early, pruned, diverged, out_of_memory, failed or lost.
        message: The error, if there was one.
        notes: What the trainer said with it.
    """

    number: int
    reason: str
    message: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """Aggregates over the trials of one study.

    Attributes:
        database: Open.
        study_id: Optuna's.
        name: The study's.
    """

    database: Database
    study_id: int
    name: str

    def counts(self) -> dict[str, int]:
        """Return the number of trials by state."""
        query = (
            sa.select(TRIALS.c.state, sa.func.count())
            .where(TRIALS.c.study_id == self.study_id)
            .group_by(TRIALS.c.state)
        )
        rows = self._do(lambda connection: connection.execute(query).all())
        return {state.name: int(count) for state, count in rows}

    def best(self, sign: float) -> int | None:
        """Return the number of the best completed trial, the first of equals.

        Args:
            sign: ``sign * value`` is to be minimized.
        """
        query = (
            sa.select(TRIALS.c.number)
            .join(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
            .where(TRIALS.c.study_id == self.study_id, TRIALS.c.state == TrialState.COMPLETE)
            .order_by(sign * VALUES.c.value, TRIALS.c.number)
            .limit(1)
        )
        return self._do(lambda connection: connection.scalar(query))

    def latest(self, num_trials: int) -> list[int]:
        """Return the numbers of the newest trials, rising."""
        query = (
            sa.select(TRIALS.c.number)
            .where(TRIALS.c.study_id == self.study_id)
            .order_by(TRIALS.c.number.desc())
            .limit(num_trials)
        )
        rows = self._do(lambda connection: connection.execute(query).all())
        return sorted(int(number) for (number,) in rows)

    def has_reports(self) -> bool:
        """Return whether any trial has come to a validation."""
        query = (
            sa.select(REPORTS.c.step)
            .join(TRIALS, TRIALS.c.trial_id == REPORTS.c.trial_id)
            .where(TRIALS.c.study_id == self.study_id)
            .limit(1)
        )
        return self._do(lambda connection: connection.execute(query).first()) is not None

    def ends(self) -> list[Ended]:
        """Return how each finished trial ended, by number."""
        query = self._attributes_of(ATTRIBUTES.c.key == END).order_by(TRIALS.c.number)
        return self._do(lambda connection: [_ended(*row) for row in connection.execute(query)])

    def last_ends(self, num_trials: int) -> list[Ended]:
        """Return how the trials ended that were the last to end, the newest first."""
        query = (
            self._attributes_of(ATTRIBUTES.c.key == END)
            .where(TRIALS.c.state.in_(FINISHED))
            .order_by(TRIALS.c.datetime_complete.desc(), TRIALS.c.number.desc())
            .limit(num_trials)
        )
        return self._do(lambda connection: [_ended(*row) for row in connection.execute(query)])

    def notes(self) -> list[str]:
        """Return what trainers had to say of data and model, each once, oldest first."""
        spoken = ATTRIBUTES.c.value_json.contains('"notes": ["', autoescape=True)
        said = ATTRIBUTES.c.key.startswith(REPORT, autoescape=True) | (ATTRIBUTES.c.key == END)
        query = self._attributes_of(said & spoken).order_by(TRIALS.c.number)
        notes = self._do(
            lambda connection: [
                note for _, text in connection.execute(query) for note in _notes(_mapping(text))
            ]
        )
        return list(dict.fromkeys(notes))

    def _attributes_of(self, which: sa.ColumnElement[bool]) -> sa.Select[tuple[Any, Any]]:
        return (
            sa.select(TRIALS.c.number, ATTRIBUTES.c.value_json)
            .join(TRIALS, TRIALS.c.trial_id == ATTRIBUTES.c.trial_id)
            .where(TRIALS.c.study_id == self.study_id, which)
        )

    def _do(self, look: Callable[[sa.Connection], _T]) -> _T:
        with readable(self.name, shown(self.database.url)):
            return self.database.look(look)


def counts_by_study(database: Database) -> list[tuple[str, dict[str, int]]]:
    """Return each study's name and the number of its trials by state, by name."""
    query = (
        sa.select(STUDIES.c.study_name, TRIALS.c.state, sa.func.count(TRIALS.c.trial_id))
        .join(TRIALS, TRIALS.c.study_id == STUDIES.c.study_id, isouter=True)
        .group_by(STUDIES.c.study_name, TRIALS.c.state)
        .order_by(STUDIES.c.study_name)
    )
    counts: dict[str, dict[str, int]] = {}
    for name, state, count in database.look(lambda c: c.execute(query).all()):
        by_state = counts.setdefault(str(name), {})
        if state is not None:
            by_state[state.name] = int(count)
    return list(counts.items())


def _ended(number: int, text: str) -> Ended:
    end = _mapping(text)
    message = end.get("message")
    return Ended(
        number,
        str(end.get("reason")),
        None if message is None else str(message),
        _notes(end),
    )


def _mapping(text: str) -> dict[str, Any]:
    value = json.loads(text)
    return value if isinstance(value, dict) else {}


def _notes(said: dict[str, Any]) -> tuple[str, ...]:
    notes = said.get("notes")
    return tuple(map(str, notes)) if isinstance(notes, list) else ()
