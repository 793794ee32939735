"""Tries a space on some of its points before any trial runs: do its expressions work?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from search_spaces.entries import Searched
from search_spaces.grids import drawable_domains
from search_spaces.problems import Problem, SpaceError
from search_spaces.tree import ParameterTree
from search_spaces.walk import Walk

MAX_VISITS = 100_000
NUM_TRIED = 200


def probe(tree: ParameterTree) -> Iterator[Problem]:
    """Yield expressions that fail on a point, and constraints that leave a finite space empty.

    At most NUM_TRIED points are tried, more only until the first feasible one is found.
    """
    domains = {
        name: parameter.probe_points()
        for name, parameter in tree.parameters.items()
        if isinstance(parameter, Searched)
    }
    read = (name for expression in tree.expressions() for name in expression.names)
    tied = tree.parameters.keys() - set(domains)
    walk = Walk(tree, domains, tree.closure([*read, *tree.whens, *tied]))
    is_finite = drawable_domains(tree) is not None
    try:
        for count, visit in enumerate(itertools.islice(walk, MAX_VISITS), start=1):
            if visit.is_feasible:
                is_finite = False  # not contradictory, whatever the rest
            if count >= NUM_TRIED and not is_finite:
                return
    except SpaceError as error:
        yield from error.problems
        return
    if is_finite and count < MAX_VISITS:
        yield _contradiction(tree)


def _contradiction(tree: ParameterTree) -> Problem:
    listed = "; ".join(constraint.text for constraint in tree.constraints)
    return Problem(
        ("constraints",),
        f"no point of the space fulfils the constraints ({listed}). Loosen one of them.",
    )
