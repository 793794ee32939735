"""The points of a space, one after the other, through its `when` tree."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from search_spaces.entries import Searched
from search_spaces.expressions import Expression
from search_spaces.tree import ParameterTree
from search_spaces.values import Scalar

Domains = Mapping[str, Sequence[Scalar]]


@dataclass(frozen=True)
class Visit:
    """A point reached, or a part of one after which a constraint leaves nothing."""

    digits: tuple[int, ...]
    is_feasible: bool


class Walk:
    """Visits every combination of the domains' values that the tree allows.

    The parameter that comes first in `names` varies slowest. A digit is a value's index in its
    domain plus one; 0 means inactive. A constraint is checked as soon as all that it reads is
    decided, so a rejected part is visited once, not once for each of its points.
    """

    def __init__(self, tree: ParameterTree, domains: Domains, names: Collection[str]) -> None:
        self._tree = tree
        self._domains = domains
        self._order = [name for name in tree.order if name in names]
        self._decided = _decided_at(tree.constraints, self._order)

    def __iter__(self) -> Iterator[Visit]:
        return self._visit(0, dict(self._tree.fixed), ())

    def _visit(
        self, depth: int, seen: dict[str, object], digits: tuple[int, ...]
    ) -> Iterator[Visit]:
        if depth == len(self._order):
            yield Visit(digits, True)
            return
        name = self._order[depth]
        parameter = self._tree.parameters[name]
        if not isinstance(parameter, Searched):
            if self._tree.is_active(name, seen):
                seen[name] = self._tree.tied_value(name, seen)
            yield from self._checked(depth, seen, digits)
        elif self._tree.is_active(name, seen):
            for index, stored in enumerate(self._domains[name]):
                seen[name] = parameter.seen(stored)
                yield from self._checked(depth, seen, (*digits, index + 1))
        else:
            yield from self._checked(depth, seen, (*digits, 0))
        seen.pop(name, None)

    def _checked(
        self, depth: int, seen: dict[str, object], digits: tuple[int, ...]
    ) -> Iterator[Visit]:
        for constraint in self._decided[depth]:
            if constraint.is_readable(seen) and not constraint.holds(seen):
                yield Visit(digits, False)
                return
        yield from self._visit(depth + 1, seen, digits)


def _decided_at(constraints: Sequence[Expression], order: Sequence[str]) -> list[list[Expression]]:
    position = {name: depth for depth, name in enumerate(order)}
    decided: list[list[Expression]] = [[] for _ in order]
    for constraint in constraints:
        last = max((position.get(name, -1) for name in constraint.names), default=-1)
        if last >= 0:
            decided[last].append(constraint)
    return decided
