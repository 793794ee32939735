"""Samplers by name: Optuna's own, built anew and seeded anew for every proposal.

A sampler's random state is not in the database, so a sampler that lived as long as its driver would
propose other configs after a resume. One that is seeded from (study seed, trial number, attempt)
proposes the same whether the driver was restarted or not.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace

from hpo.errors import SpecError
from hpo.lookup import find
from hpo.spec import SamplerSpec
from search_spaces.problems import did_you_mean

GRID = "grid"
"""Enumerated by the search space itself: its `when` tree is unknown to Optuna's GridSampler."""

SAMPLERS = {
    "random": "optuna.samplers:RandomSampler",
    "tpe": "optuna.samplers:TPESampler",
    "gp": "optuna.samplers:GPSampler",
    "cmaes": "hpo.cma_sampler:PlainCmaEsSampler",
    "qmc": "optuna.samplers:QMCSampler",
    "nsga2": "optuna.samplers:NSGAIISampler",
    "nsga3": "optuna.samplers:NSGAIIISampler",
    "brute_force": "optuna.samplers:BruteForceSampler",
}

SEQUENCES = ("qmc",)
"""Samplers that walk one seeded sequence: a new seed per proposal would be a new sequence."""


def derived_seed(*parts: int | str) -> int:
    """Return 32 bits that depend on all parts and look random."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def common_ranges() -> IntersectionSearchSpace:
    """Return what finds the ranges that all trials of a study have, for the TPE of each proposal.

    It remembers which trials it has compared. Each new TPESampler (Optuna 5.0) has one of its own, which
    compares all trials with each other: half of a proposal's time. What it finds is the same.
    """
    return IntersectionSearchSpace(include_pruned=True)


def build_sampler(
    spec: SamplerSpec,
    number: int,
    attempt: int,
    *,
    grouped: bool,
    common: IntersectionSearchSpace | None = None,
) -> BaseSampler:
    """Return the sampler for one attempt at proposing one trial.

    Args:
        spec: Name, seed and options; not ``grid``.
        number: The number the trial will have.
        attempt: Counts the proposals rejected before.
        grouped: The space has conditions: TPE shall sample each group of parameters together.
        common: As ``common_ranges`` returned it for the same study.

    Raises:
        SpecError: The sampler is unknown or refuses its options.
    """
    known = {GRID: GRID, **SAMPLERS}
    factory = find("sampler", spec.type, known)
    if factory is optuna.samplers.CmaEsSampler:  # named by its path
        factory = find("sampler", "cmaes", known)
    if not (
        isinstance(factory, type) and issubclass(factory, BaseSampler)
    ):  # nothing else is called
        raise SpecError(
            f"the sampler {spec.type!r} is no optuna.samplers.BaseSampler: give the path of such a class."
        )
    options = dict(spec.options)
    accepted = inspect.signature(factory).parameters
    if "seed" in accepted:
        walks = spec.type in SEQUENCES
        options["seed"] = spec.seed if walks else derived_seed(spec.seed, number, attempt)
    if spec.type == "tpe" and grouped:
        options.setdefault("group", True)
    for name in options:
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
        if name not in accepted and not takes_any:
            raise SpecError(
                f"the sampler {spec.type!r} has no option {name!r}.{did_you_mean(name, accepted)} "
                f"It has: {', '.join(accepted)}."
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = factory(**options)
    except (TypeError, ValueError, ImportError) as error:
        raise SpecError(f"the sampler {spec.type!r} refuses its options: {error}") from error
    assert isinstance(sampler, BaseSampler)
    if common is not None and type(sampler) is TPESampler:
        sampler._search_space = common
    return sampler
