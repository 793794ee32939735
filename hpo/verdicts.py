"""Verdicts on running trials: does this one go on, given every report that is stored?

Each is a pure function of stored reports, so it can be asked again after any crash and answers the
same. Optuna's SuccessiveHalvingPruner and HyperbandPruner are not: they write a trial's rung into the
database before they answer; those two are computed here. The other pruners of Optuna read only and
are used as they are.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from hpo.errors import SpecError
from hpo.lookup import find
from hpo.mirror import Mirror
from hpo.spec import PrunerSpec
from search_spaces.problems import did_you_mean

PRUNERS = {
    "median": "optuna.pruners:MedianPruner",
    "percentile": "optuna.pruners:PercentilePruner",
    "patient": "optuna.pruners:PatientPruner",
    "threshold": "optuna.pruners:ThresholdPruner",
    "wilcoxon": "optuna.pruners:WilcoxonPruner",
}


class Judge(Protocol):
    """Decides on trials from stored reports alone."""

    def bracket_of(self, number: int) -> int:
        """Return the bracket of a trial: it is compared with those of the same bracket."""
        ...

    def stops(self, mirror: Mirror, trial: FrozenTrial) -> bool:
        """Return whether the trial, judged at its newest report, shall end now.

        Args:
            mirror: All trials, this one included, with their reports (step = validation index).
            trial: The trial, as it was at that report.
        """
        ...


@dataclass(frozen=True)
class Never:
    """No pruning."""

    def bracket_of(self, number: int) -> int:
        """Return 0: all trials are of one bracket."""
        return 0

    def stops(self, mirror: Mirror, trial: FrozenTrial) -> bool:
        """Return False."""
        return False


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving: at each rung the best 1 / reduction_factor go on.

    Attributes:
        min_resource: Validations before the first rung.
        reduction_factor: Rungs are at min_resource * reduction_factor ** k validations.
        min_early_stopping_rate: Skips the first so many rungs (``s`` in the paper).

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning,
    https://arxiv.org/abs/1810.05934, algorithm 2: the rule of promotion, read as a rule of stopping.
    """

    min_resource: int = 1
    reduction_factor: int = 3
    min_early_stopping_rate: int = 0

    def __post_init__(self) -> None:
        _at_least("min_resource", self.min_resource, 1)
        _at_least("reduction_factor", self.reduction_factor, 2)
        _at_least("min_early_stopping_rate", self.min_early_stopping_rate, 0)

    def is_rung(self, validation: int) -> bool:
        """Return whether trials are compared at this validation."""
        rung = self.min_resource * self.reduction_factor**self.min_early_stopping_rate
        while rung < validation:
            rung *= self.reduction_factor
        return rung == validation

    def bracket_of(self, number: int) -> int:
        """Return 0: all trials are of one bracket."""
        return 0

    def stops(self, mirror: Mirror, trial: FrozenTrial) -> bool:
        """Return whether fewer than 1 / reduction_factor of the rung's trials are worse or equal."""
        validation = trial.last_step
        if validation is None or not self.is_rung(validation):
            return False
        num_better, num_trials = mirror.rungs.place(
            trial.number,
            validation,
            trial.intermediate_values[validation],
            minimize=mirror.minimize,
        )
        return num_better >= max(1, num_trials // self.reduction_factor)


@dataclass(frozen=True)
class Hyperband:
    """Several ASHA brackets, each with a later first rung; a trial's number names its bracket.

    Attributes:
        min_resource: Validations before the first bracket's first rung.
        max_resource: Validations of a full trial.
        reduction_factor: As in Asha.

    Source: Li et al., Hyperband, https://arxiv.org/abs/1603.06560, algorithm 1; the sizes of the
    brackets as in Optuna's HyperbandPruner.
    """

    max_resource: int
    min_resource: int = 1
    reduction_factor: int = 3

    def __post_init__(self) -> None:
        _at_least("max_resource", self.max_resource, 1)
        _at_least("min_resource", self.min_resource, 1)
        _at_least("reduction_factor", self.reduction_factor, 2)

    @property
    def num_brackets(self) -> int:
        """Brackets that differ within max_resource."""
        count, resource = 1, self.min_resource
        while resource * self.reduction_factor <= self.max_resource:
            resource *= self.reduction_factor
            count += 1
        return count

    def bracket_of(self, number: int) -> int:
        """Return the bracket of the trial with this number: fixed, and spread by trials needed."""
        s_max = self.num_brackets - 1
        sizes = [
            -(-(s_max + 1) * self.reduction_factor ** (s_max - s) // (s_max - s + 1))
            for s in range(s_max + 1)
        ]
        digest = hashlib.blake2b(f"bracket {number}".encode(), digest_size=8).digest()
        point = int.from_bytes(digest, "big") % sum(sizes)
        for bracket, size in enumerate(sizes):
            if point < size:
                return bracket
            point -= size
        raise AssertionError("point lies below the sum of the sizes")

    def stops(self, mirror: Mirror, trial: FrozenTrial) -> bool:
        """Return the verdict of the trial's own bracket."""
        bracket = Asha(self.min_resource, self.reduction_factor, self.bracket_of(trial.number))
        return bracket.stops(mirror, trial)


@dataclass(frozen=True)
class OptunaJudge:
    """A pruner of Optuna, or the user's own, that only reads."""

    pruner: BasePruner

    def bracket_of(self, number: int) -> int:
        """Return 0: the pruner chooses whom it compares."""
        return 0

    def stops(self, mirror: Mirror, trial: FrozenTrial) -> bool:
        """Return what the pruner says."""
        return self.pruner.prune(mirror.study(), trial)


OURS: Mapping[str, type[Asha] | type[Hyperband] | type[Never]] = {
    "asha": Asha,
    "successive_halving": Asha,
    "hyperband": Hyperband,
    "none": Never,
}


def build_judge(spec: PrunerSpec, num_validations: int | None = None) -> Judge:
    """Return the judge of a study.

    Args:
        spec: Name and options.
        num_validations: Of a full trial: Hyperband's ``max_resource`` if the user gives none.

    Raises:
        SpecError: The pruner is unknown or refuses its options.
    """
    options = dict(spec.options)
    ours = OURS.get(spec.type)
    if ours is Hyperband and num_validations is not None:
        options.setdefault("max_resource", num_validations)
    if spec.type == "patient":
        inner = options.setdefault("wrapped_pruner", None)
        if inner is not None:
            named = inner if isinstance(inner, dict) else {"type": str(inner)}
            if not isinstance(named.get("type"), str):
                raise SpecError(f"wrapped_pruner must have the name of a pruner, not {inner!r}.")
            options["wrapped_pruner"] = build_pruner(PrunerSpec.model_validate(named))
    if ours is not None:
        return cast(Judge, _construct(spec.type, ours, options))
    return OptunaJudge(build_pruner(PrunerSpec(type=spec.type, **options)))


def build_pruner(spec: PrunerSpec) -> BasePruner:
    """Return one of Optuna's pruners, or the user's own, that only reads."""
    factory = find("pruner", spec.type, {**dict.fromkeys(OURS, ""), **PRUNERS})
    if factory in (optuna.pruners.SuccessiveHalvingPruner, optuna.pruners.HyperbandPruner):
        raise SpecError(
            f"the pruner {spec.type!r} writes into the study while it judges, so a crash would change "
            f"its verdict. Use 'asha' or 'hyperband': the same rules, as functions of what is stored."
        )
    if not (
        isinstance(factory, type) and issubclass(factory, BasePruner)
    ):  # nothing else is called
        raise SpecError(
            f"the pruner {spec.type!r} is no optuna.pruners.BasePruner: give the path of such a class."
        )
    pruner = _construct(spec.type, factory, dict(spec.options))
    assert isinstance(pruner, BasePruner)
    return pruner


def _construct(name: str, factory: Callable[..., object], options: dict[str, object]) -> object:
    accepted = inspect.signature(factory).parameters
    for option in options:
        if option not in accepted:
            raise SpecError(
                f"the pruner {name!r} has no option {option!r}.{did_you_mean(option, accepted)} "
                f"It has: {', '.join(accepted) or 'none'}."
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return factory(**options)
    except (TypeError, ValueError) as error:
        raise SpecError(f"the pruner {name!r} refuses its options: {error}") from error


def _at_least(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, not {value!r}")
