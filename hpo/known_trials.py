"""The trials of a study as one driver knows them: kept up to date row by row, asked without a query.

Of a trial that has ended only what samplers and pruners learn from stays in memory; the rest is read
again for those that somebody looks at. Decides nothing and writes nothing.
"""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.mirror import Mirror
from hpo.standing import Standing
from hpo.storage.attributes import DIGEST, SAMPLER_STATE, lightly
from hpo.storage.row_shapes import check_order
from hpo.studies import StudyRecord, TrialRecord, trial_record
from search_spaces import SearchSpace, SpaceError

REMEMBERED = 64
"""Finished trials whose whole record is remembered: those that people look at."""


class KnownTrials:
    """What a driver knows of its study's trials.

    Attributes:
        mirror: The same trials for samplers and pruners.
        standing: Who leads, and who is left.
        digests: Of every config.
    """

    def __init__(
        self, record: StudyRecord, space: SearchSpace, bracket_of: Callable[[int], int]
    ) -> None:
        """Know no trial yet.

        Args:
            record: The stored study.
            space: As it is searched now; a trial's own ranges may be of an earlier one.
            bracket_of: Number of a trial -> its bracket, within which trials are compared.
        """
        spec = record.spec
        direction = StudyDirection.MINIMIZE if spec.sign > 0 else StudyDirection.MAXIMIZE
        self.mirror = Mirror(record.name, direction, bracket_of)
        self.standing = Standing(spec.sign)
        self.digests: set[str] = set()
        self._record = record
        self._space = space
        self._ids: list[int] = []
        self._newest_id = 0
        self._ranges_of: dict[frozenset[str], dict[str, BaseDistribution]] = {}
        self._remembered: dict[int, TrialRecord] = {}

    def __len__(self) -> int:
        """Return the number of trials."""
        return len(self._ids)

    def __getitem__(self, number: int) -> FrozenTrial:
        """Return a trial as samplers and pruners see it."""
        return self.mirror.trials[number]

    def id_of(self, number: int) -> int:
        """Return a trial's id in the database."""
        return self._ids[number]

    # Learning

    def see_all(self) -> None:
        """Read every trial."""
        for trial in self._record.stored.all(light=True):
            self._see(trial)

    @property
    def newest_id(self) -> int:
        """The greatest id of a trial; later ones have greater ids. 0 without any."""
        return self._newest_id

    def see(self, *trial_ids: int) -> None:
        """Read some trials as they are stored now: another driver has or had them."""
        for trial in self._record.stored.of(trial_ids, light=True):
            self._see(trial)

    def see_others(self, own: Collection[int]) -> None:
        """Read what other drivers have stored since: of all trials but one's own, by number."""
        for trial in self._record.stored.changed(self._newest_id, self.unfinished_but(own)):
            self._see(trial)

    def unfinished_but(self, own: Collection[int]) -> dict[int, int]:
        """Return the ids of other drivers' unfinished trials, and how many reports are known of each."""
        return {
            self._ids[number]: len(self[number].intermediate_values)
            for number in self.standing.unfinished
            if number not in own
        }

    def add_report(self, number: int, validation: int, name: str, said: Any, value: float) -> None:
        """Take a report that this driver has just stored, under this name."""
        self[number].system_attrs[name] = said
        self.mirror.add_report(number, validation, value)

    def add(self, trial: FrozenTrial) -> None:
        """Take a trial that this driver has just stored."""
        self._see(trial)

    def release(self, number: int) -> None:
        """Take that this driver has just handed a trial back."""
        waiting = copy.copy(self[number])
        waiting.state = TrialState.WAITING
        self._see(waiting)

    def end(
        self,
        number: int,
        state: TrialState,
        value: float | None,
        said: Mapping[str, Any],
        completed: datetime.datetime,
    ) -> None:
        """Take how this driver has just ended a trial.

        Args:
            number: Of the trial.
            state: It has ended with.
            value: It was told with.
            said: The attributes that were stored with its end.
            completed: When.
        """
        ended = copy.copy(self[number])
        ended.state, ended.datetime_complete = state, completed
        ended.values = None if value is None else [value]
        ended.system_attrs = {**ended.system_attrs, **said}
        self._remember(trial_record(ended, self._record.spec))
        ended.system_attrs = lightly(ended.system_attrs)
        self._see(ended)

    def _see(self, trial: FrozenTrial) -> None:
        check_order(self._record.name, trial, len(self))
        if trial.number == len(self):
            self._ids.append(trial._trial_id)
            self._newest_id = max(self._newest_id, trial._trial_id)
        self.mirror.put(trial, self._ranges(trial))
        self.standing.see(trial)
        self.digests.add(str(trial.system_attrs.get(DIGEST)))
        for key, value in trial.system_attrs.get(SAMPLER_STATE, {}).items():
            self.mirror.set_study_system_attr(self.mirror.study_id, key, value)

    def _ranges(self, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return a trial's ranges as they are now: samplers search where all trials agree."""
        names = frozenset(trial.params)
        if names not in self._ranges_of:
            try:
                self._ranges_of[names] = self._space.distributions(trial.params)
            except SpaceError:
                return trial.distributions
        return self._ranges_of[names]

    # Telling

    def records(self, numbers: Sequence[int]) -> list[TrialRecord]:
        """Return whole trials; of each finished one the database is asked once, for a while."""
        found: dict[int, TrialRecord] = {}
        for number in numbers:
            if not self[number].state.is_finished():
                found[number] = trial_record(self[number], self._record.spec)
            elif number in self._remembered:
                found[number] = self._remembered[number]
        missing = [self._ids[number] for number in numbers if number not in found]
        if missing:
            for stored in self._record.stored.of(missing):
                trial = trial_record(stored, self._record.spec)
                found[trial.number] = trial
                self._remember(trial)
        return [found[number] for number in numbers]

    def _remember(self, trial: TrialRecord) -> None:
        self._remembered[trial.number] = trial
        while len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    def leaders(self, num_trials: int) -> list[TrialRecord]:
        """Return the best completed trials, best first."""
        return self.records(self.standing.leaders(num_trials))
