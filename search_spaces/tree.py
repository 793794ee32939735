"""Which parameters exist for given choices, and what their values are: the meaning of a space.

Everything here is a pure function of stored values. Reading a document is not here, nor are grids.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from search_spaces.categorical import Label
from search_spaces.entries import Entry, Searched
from search_spaces.expressions import Expression
from search_spaces.values import Scalar


@dataclass(frozen=True)
class ParameterTree:
    """Parameters with their conditions and formulas, and the constraints over them.

    A parameter whose `when` is false is inactive. So is one whose `when` or `value` reads an
    inactive one. A constraint that reads an inactive one does not apply.

    Attributes:
        parameters: In document order.
        whens: Conditions of those that have one.
        formulas: Formulas of the tied ones; a tied one without has a constant.
        constraints: What every point has to fulfil.
        fixed: Those values of the fixed part that expressions read.
        order: All parameters, each after those that it reads, otherwise in document order.
    """

    parameters: Mapping[str, Entry]
    whens: Mapping[str, Expression]
    formulas: Mapping[str, Expression]
    constraints: tuple[Expression, ...]
    fixed: Mapping[str, object]
    order: tuple[str, ...]

    def is_active(self, name: str, seen: Mapping[str, object]) -> bool:
        """Return whether a parameter exists, given all before it in the order."""
        when = self.whens.get(name)
        if when is not None and not (when.is_readable(seen) and when.holds(seen)):
            return False
        formula = self.formulas.get(name)
        return formula is None or formula.is_readable(seen)

    def tied_value(self, name: str, seen: Mapping[str, object]) -> object:
        """Return the value, as seen, of an active tied parameter."""
        formula = self.formulas.get(name)
        if formula is not None:
            return formula.value(seen)
        return getattr(self.parameters[name], "value")  # noqa: B009, an Entry here is a tied one

    def settle(self, draw: Callable[[str, Searched], Scalar]) -> dict[str, object]:
        """Draw every active parameter once, in order, and return all values as seen, fixed too."""
        seen = dict(self.fixed)
        for name in self.order:
            if not self.is_active(name, seen):
                continue
            parameter = self.parameters[name]
            if isinstance(parameter, Searched):
                seen[name] = parameter.seen(draw(name, parameter))
            else:
                seen[name] = self.tied_value(name, seen)
        return seen

    def broken(self, seen: Mapping[str, object]) -> Iterator[Expression]:
        """Yield the constraints that apply and do not hold."""
        for constraint in self.constraints:
            if constraint.is_readable(seen) and not constraint.holds(seen):
                yield constraint

    def resolved(self, seen: Mapping[str, object]) -> dict[str, object]:
        """Return the active parameters' values as the trainer gets them, in document order."""
        return {name: _unlabelled(seen[name]) for name in self.parameters if name in seen}

    def expressions(self) -> tuple[Expression, ...]:
        """Return every expression of the space."""
        return (*self.whens.values(), *self.formulas.values(), *self.constraints)

    def reads(self, name: str) -> frozenset[str]:
        """Return the parameters that decide whether this one exists, and a tied one's value."""
        expressions = (self.whens.get(name), self.formulas.get(name))
        found = (expression.names for expression in expressions if expression is not None)
        return frozenset().union(*found) & self.parameters.keys()

    def closure(self, names: Iterable[str]) -> frozenset[str]:
        """Return these parameters and all that they read, directly or not."""
        found: set[str] = set()
        queue = [name for name in names if name in self.parameters]
        while queue:
            name = queue.pop()
            if name not in found:
                found.add(name)
                queue.extend(self.reads(name))
        return frozenset(found)

    def entangled(self) -> frozenset[str]:
        """Return the parameters that cannot be counted apart from others."""
        conditional = [name for name in self.parameters if name in self.whens]
        constrained = [name for constraint in self.constraints for name in constraint.names]
        return self.closure([*conditional, *constrained])

    def searched(self, names: Collection[str]) -> list[str]:
        """Return those of these names that a sampler draws, in dependency order."""
        return [
            name
            for name in self.order
            if name in names and isinstance(self.parameters[name], Searched)
        ]


def _unlabelled(value: object) -> object:
    return value.value if isinstance(value, Label) else value
