"""Counting the points of a space, and the points of a grid search in a fixed order."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import overload

from search_spaces.entries import Searched
from search_spaces.problems import Problem, SpaceError
from search_spaces.tree import ParameterTree
from search_spaces.values import Scalar
from search_spaces.walk import Domains, Visit, Walk

MAX_VISITS = 1_000_000

Params = dict[str, Scalar]


class TooManyPointsError(Exception):
    """Counting would take longer than is reasonable."""


class GridPoints(Sequence[Params]):
    """The feasible points of a grid, as Optuna's parameters, each exactly once.

    Their order is that of counting: the first parameter varies slowest, each through its points in
    document order; a parameter counts after those that its `when` reads. Kept as one number a
    point, so a million points are cheap; two grids are equal if they visit the same points in the
    same order.
    """

    def __init__(self, names: Sequence[str], domains: Domains, codes: Sequence[int]) -> None:
        self._names = tuple(names)
        self._domains = {name: domains[name] for name in names}
        self._codes = tuple(codes)

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, index: int) -> Params: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Params]: ...
    def __getitem__(self, index: int | slice) -> Params | Sequence[Params]:
        if isinstance(index, slice):
            return [self._decoded(code) for code in self._codes[index]]
        return self._decoded(self._codes[index])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GridPoints):
            return NotImplemented
        return len(self) == len(other) and all(map(_is_same_point, self, other))

    def __hash__(self) -> int:
        return hash((self._names, len(self._codes)))

    def _decoded(self, code: int) -> Params:
        digits = []
        for name in reversed(self._names):
            code, digit = divmod(code, len(self._domains[name]) + 1)
            digits.append(digit)
        pairs = zip(self._names, reversed(digits), strict=True)
        return {name: self._domains[name][digit - 1] for name, digit in pairs if digit}


def grid_points(tree: ParameterTree) -> GridPoints:
    """Return the feasible points of the space's grid.

    Raises:
        SpaceError: A parameter has no grid, or there are too many points, or none.
    """
    domains = _grid_domains(tree)
    names = tree.searched(tree.parameters)
    try:
        if num_points(tree, domains) > MAX_VISITS:
            raise TooManyPointsError
        codes = _codes(tree, domains, names)
    except TooManyPointsError:
        raise SpaceError(
            [
                Problem(
                    ("space",),
                    f"the grid has more than {MAX_VISITS:,} points. Give fewer: a larger `step:`, "
                    f"or `grid:` with the points that matter.",
                )
            ]
        ) from None
    if not codes:
        raise SpaceError([Problem(("space",), "the constraints leave no point of the grid.")])
    return GridPoints(names, domains, codes)


def num_points(tree: ParameterTree, domains: Domains) -> int:
    """Return the number of feasible points.

    Parameters that neither conditions nor constraints touch are multiplied, not visited.

    Raises:
        TooManyPointsError: The others make more than MAX_VISITS combinations.
    """
    entangled = tree.entangled()
    free = tree.searched(tree.parameters.keys() - entangled)
    if any(_is_endless(tree, name, domains) for name in tree.searched(entangled)):
        raise TooManyPointsError
    visits = _bounded(Walk(tree, domains, entangled))
    return sum(visit.is_feasible for visit in visits) * math.prod(
        len(domains[name]) for name in free
    )


def drawable_domains(tree: ParameterTree) -> Domains | None:
    """Return what can be drawn for each parameter, or None if a parameter is continuous."""
    domains = {}
    for name, parameter in tree.parameters.items():
        if isinstance(parameter, Searched):
            points = parameter.points()
            if points is None:
                return None
            domains[name] = points
    return domains


def _grid_domains(tree: ParameterTree) -> Domains:
    domains: dict[str, Sequence[Scalar]] = {}
    problems = []
    for name, parameter in tree.parameters.items():
        if isinstance(parameter, Searched):
            points = parameter.grid_points()
            if points is None:
                problems.append(_no_grid(name))
            else:
                domains[name] = points
    if problems:
        raise SpaceError(problems)
    return domains


def _is_endless(tree: ParameterTree, name: str, domains: Domains) -> bool:
    return name not in tree.whens and len(domains[name]) > MAX_VISITS


def _no_grid(name: str) -> Problem:
    return Problem(
        ("space", name),
        f"{name} has endlessly many values, so a grid search cannot visit them. Give the points, "
        f"as in `grid: [0.1, 0.2]`, or their number, as in `grid: 5`, or a `step:`.",
    )


def _codes(tree: ParameterTree, domains: Domains, names: Sequence[str]) -> list[int]:
    radices = [len(domains[name]) + 1 for name in names]
    wanted = tree.closure([*names, *tree.entangled()])
    return [
        functools.reduce(
            lambda code, pair: code * pair[0] + pair[1],
            zip(radices, visit.digits, strict=True),
            0,
        )
        for visit in _bounded(Walk(tree, domains, wanted))
        if visit.is_feasible
    ]


def _bounded(walk: Walk) -> Iterator[Visit]:
    for count, visit in enumerate(walk):
        if count == MAX_VISITS:
            raise TooManyPointsError
        yield visit


def _is_same_point(one: Params, other: Params) -> bool:
    return list(one.items()) == list(other.items())
