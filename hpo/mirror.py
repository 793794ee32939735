"""A study in memory, in which samplers propose and pruners judge.

Holds the same trials as the database, under the same numbers. A proposal that is rejected leaves it
without a trace; only an accepted one is ever stored. Knows no database.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.rungs import Rungs


class Mirror(InMemoryStorage):
    """Optuna's in-memory storage with one study, whose trials can be replaced and taken back.

    Reaches into the private fields of InMemoryStorage (Optuna 5.0): it has no way to remove a trial.
    """

    def __init__(
        self,
        name: str,
        direction: StudyDirection,
        bracket_of: Callable[[int], int] = lambda number: 0,
    ) -> None:
        """Hold no trial yet.

        Args:
            name: Of the study.
            direction: Whether smaller or larger values are better.
            bracket_of: Number of a trial -> its bracket, within which trials are compared.
        """
        super().__init__()
        self.study_id = self.create_new_study([direction], name)
        self.name = name
        self.minimize = direction is StudyDirection.MINIMIZE
        self.rungs = Rungs(bracket_of)

    def study(self, sampler: BaseSampler | None = None) -> optuna.Study:
        """Return the study, to be used with this sampler."""
        return optuna.Study(
            study_name=self.name,
            storage=self,
            sampler=sampler or _PLACEHOLDER,
            pruner=optuna.pruners.NopPruner(),
        )

    @property
    def trials(self) -> Sequence[FrozenTrial]:
        """All trials by number; not to be changed."""
        return self._studies[self.study_id].trials

    def put(self, trial: FrozenTrial, distributions: dict[str, BaseDistribution]) -> None:
        """Add the next trial, or replace the one with the same number, with these ranges.

        A waiting trial is shown as running: it has its place and its parameters, and Optuna's own
        `ask` would hand it out again.
        """
        shown = copy.copy(trial)
        if shown.state is TrialState.WAITING:
            shown.state = TrialState.RUNNING
        shown.distributions = dict(distributions)
        shown.system_attrs = dict(trial.system_attrs)
        shown.intermediate_values = dict(trial.intermediate_values)
        trials = self._studies[self.study_id].trials
        if trial.number == len(trials):
            self.create_new_trial(self.study_id, shown)
        shown._trial_id = trials[trial.number]._trial_id
        trials[trial.number] = shown
        self.rungs.see(shown)

    def add_report(self, number: int, validation: int, value: float) -> None:
        """Add a validation to a trial that is here."""
        trial = self.trials[number]
        trial.intermediate_values[validation] = value
        self.rungs.see(trial)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best trial, by looking: the parent remembers one and would miss ``put``."""
        return BaseStorage.get_best_trial(self, study_id)

    def take_back(self, trial: optuna.Trial) -> None:
        """Remove the newest trial, a proposal that was rejected."""
        info = self._studies[self.study_id]
        assert info.trials[-1].number == trial.number, "only the newest trial can be taken back"
        info.trials.pop()
        del self._trial_id_to_study_id_and_number[trial._trial_id]


_PLACEHOLDER = optuna.samplers.RandomSampler(seed=0)
