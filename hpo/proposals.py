"""Proposes the next config, in memory: enqueued ones first, then the grid's or the sampler's.

Infeasible and repeated points are rejected here, so every stored trial is worth training. Knows no
database; what it returns is stored by ``hpo.study`` in one insert.
"""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler

from hpo.errors import ExhaustedError
from hpo.mirror import Mirror
from hpo.samplers import GRID, build_sampler, common_ranges, derived_seed
from hpo.spec import StudySpec
from hpo.storage.attributes import SAMPLER_STATE
from search_spaces import Scalar, SearchSpace

OWN_ATTEMPTS = 20
"""Proposals of the sampler that may be rejected before random ones take their place: one that
looks for an optimum, like GP's, may find the same point again and again."""

MAX_ATTEMPTS = 400
"""Proposals rejected in a row before there is nothing left to propose."""


@dataclass(frozen=True)
class Proposal:
    """A point that is feasible and new.

    Attributes:
        params: What Optuna stores: names as drawn, labels for named choices.
        distributions: Of these parameters.
        config: Everything the trainer is given.
        digest: Of the config; equal configs have equal digests.
        system_attrs: What the sampler wants to find again with this trial.
    """

    params: dict[str, Scalar]
    distributions: dict[str, BaseDistribution]
    config: dict[str, object]
    digest: str
    system_attrs: dict[str, object] = field(default_factory=dict)


def config_digest(config: Mapping[str, object]) -> str:
    """Return a digest that is equal for equal configs, whatever the order of their keys."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Proposer:
    """Proposes for one study."""

    def __init__(self, spec: StudySpec, mirror: Mirror) -> None:
        self._spec = spec
        self._space: SearchSpace = spec.search_space
        self._mirror = mirror
        self._next_grid_index = 0
        self._num_points: int | None = None
        self._counted = False
        self._common = common_ranges()

    def propose(self, number: int, seen: Set[str]) -> Proposal:
        """Return the config of the trial with this number, the next of the mirror.

        The same mirror, number and digests give the same proposal.

        Args:
            number: Of the trial to be.
            seen: Digests of the configs that the study has.

        Raises:
            ExhaustedError: Every point of the space is in the study, or none can be found.
        """
        for params in self._space.enqueued:
            proposal = self._point(params)
            if proposal.digest not in seen:
                return proposal
        if self._spec.sampler.type == GRID:
            return self._next_of_grid(seen)
        for attempt in range(MAX_ATTEMPTS):
            sampled = self._sample(number, attempt)
            if sampled is not None and sampled.digest not in seen:
                return sampled
        return self._any_unseen(number, seen)

    def _sample(self, number: int, attempt: int) -> Proposal | None:
        """Return one proposal of the sampler, or None if it breaks a constraint."""
        study = self._mirror.study(self._sampler(number, attempt))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = study.ask()
            try:
                values = self._space.suggest(trial)
                frozen = self._mirror.get_trial(trial._trial_id)
            finally:
                self._mirror.take_back(trial)
        if self._space.violated(values):
            return None
        state = self._mirror.get_study_system_attrs(self._mirror.study_id)
        attrs: dict[str, object] = dict(frozen.system_attrs)
        if state:
            attrs[SAMPLER_STATE] = dict(state)
        return self._proposal(dict(frozen.params), dict(frozen.distributions), values, attrs)

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        if attempt >= OWN_ATTEMPTS:
            return RandomSampler(seed=derived_seed(self._spec.sampler.seed, number, attempt))
        grouped = self._space.has_conditions
        spec = self._spec.sampler
        return build_sampler(spec, number, attempt, grouped=grouped, common=self._common)

    def _next_of_grid(self, seen: Set[str]) -> Proposal:
        points = self._space.grid_points()
        while self._next_grid_index < len(points):
            proposal = self._point(points[self._next_grid_index])
            if proposal.digest not in seen:
                return proposal
            self._next_grid_index += 1
        raise ExhaustedError(f"all {len(points)} points of the grid are in the study.")

    def _any_unseen(self, number: int, seen: Set[str]) -> Proposal:
        """Return a random new point of a finite space whose sampler only repeats itself."""
        if not self._counted:
            self._num_points, self._counted = self._space.num_points(), True
        if self._num_points is None:
            raise ExhaustedError(
                f"no new config that meets the constraints was found in {MAX_ATTEMPTS} draws. "
                f"Widen the space or loosen 'constraints:' for a study with more."
            )
        fresh = [
            proposal
            for proposal in map(self._point, self._space.grid_points())
            if proposal.digest not in seen
        ]
        if not fresh:
            raise ExhaustedError(
                f"all {self._num_points} configs of the space are in the study; there is no other."
            )
        return random.Random(derived_seed(self._spec.sampler.seed, number, "unseen")).choice(fresh)

    def _point(self, params: Mapping[str, Scalar]) -> Proposal:
        values = self._space.resolve(params)
        return self._proposal(dict(params), self._space.distributions(params), values, {})

    def _proposal(
        self,
        params: dict[str, Scalar],
        distributions: dict[str, BaseDistribution],
        values: Mapping[str, object],
        attrs: dict[str, object],
    ) -> Proposal:
        config = {**self._spec.fixed, **values}
        return Proposal(params, distributions, config, config_digest(config), attrs)
