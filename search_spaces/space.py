"""The search space: what a user wrote under `space`, `constraints` and `enqueue`, checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial

from search_spaces.enqueue import read_enqueue, settled_params, stored_params
from search_spaces.entries import Searched
from search_spaces.grids import (
    GridPoints,
    TooManyPointsError,
    drawable_domains,
    grid_points,
    num_points,
)
from search_spaces.probing import probe
from search_spaces.problems import Problem, SpaceError
from search_spaces.reading import read_tree
from search_spaces.tree import ParameterTree
from search_spaces.values import Scalar, plain
from search_spaces.widening import widening_problems

KEYS = ("space", "constraints", "enqueue")


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """A checked search space. Immutable and picklable; made by `parse`.

    Two are equal if their documents are, and the fixed values that their expressions read.
    """

    _tree: ParameterTree
    _document: Mapping[str, object]
    enqueued: tuple[Mapping[str, Scalar], ...]

    @classmethod
    def parse(
        cls,
        document: Mapping[str, object],
        fixed: Mapping[str, object],
        *,
        known_names: Collection[str] | None = None,
    ) -> SearchSpace:
        """Check a document and return its space.

        Args:
            document: Its keys `space`, `constraints` and `enqueue` are read, all others left alone.
            fixed: Values that all trials share; expressions may read them.
            known_names: What may be searched; anything, if None.

        Raises:
            SpaceError: With all problems of the document.
        """
        problems: list[Problem] = []
        tree, is_whole = read_tree(document, fixed, known_names, problems)
        if is_whole:
            problems.extend(probe(tree))
        is_sound = is_whole and not problems
        enqueued = read_enqueue(document, tree, is_sound, problems)
        if problems:
            raise SpaceError(problems)
        copy = {key: plain(document[key]) for key in KEYS if document.get(key) is not None}
        return cls(tree, copy, enqueued)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that a sampler draws, in document order."""
        return tuple(
            name
            for name, parameter in self._tree.parameters.items()
            if isinstance(parameter, Searched)
        )

    @property
    def tied(self) -> tuple[str, ...]:
        """The parameters that follow from others, in document order."""
        return tuple(name for name in self._tree.parameters if name not in self.names)

    @property
    def has_conditions(self) -> bool:
        """Whether any parameter is active only under a condition."""
        return bool(self._tree.whens)

    def suggest(self, trial: BaseTrial) -> dict[str, object]:
        """Draw the active parameters from a trial and return their values, the tied ones' too.

        Raises:
            SpaceError: An expression fails for the values drawn.
        """
        seen = self._tree.settle(lambda name, parameter: parameter.suggest(trial, name))
        return self._tree.resolved(seen)

    def resolve(self, params: Mapping[str, Scalar]) -> dict[str, object]:
        """Return from a trial's stored parameters what `suggest` returned when it drew them.

        Raises:
            SpaceError: A parameter is missing, unknown, inactive or out of its range.
        """
        return self._tree.resolved(self._settled(params))

    def distributions(self, params: Mapping[str, Scalar]) -> dict[str, BaseDistribution]:
        """Return the ranges of these parameters; raises SpaceError for one that is not searched."""
        stored = stored_params(self._tree, params, ())
        found = {}
        for name in stored:
            parameter = self._tree.parameters[name]
            assert isinstance(parameter, Searched)
            found[name] = parameter.distribution()
        return found

    def violated(self, values: Mapping[str, object]) -> tuple[str, ...]:
        """Return the constraints that these resolved values break.

        Raises:
            SpaceError: The values are none that `suggest` or `resolve` could return.
        """
        params = {}
        problems = []
        for name, parameter in self._tree.parameters.items():
            if name in values and isinstance(parameter, Searched):
                try:
                    params[name] = parameter.stored_from_value(values[name])
                except ValueError as error:
                    problems.append(Problem((name,), str(error)))
        if problems:
            raise SpaceError(problems)
        return tuple(broken.text for broken in self._tree.broken(self._settled(params)))

    def num_points(self) -> int | None:
        """Return how many different feasible points samplers can draw.

        A `grid:` limits only a grid search, so a float without `step:` makes the space continuous.

        Returns:
            None if the space is continuous, or has more points than can be counted.
        """
        domains = drawable_domains(self._tree)
        if domains is None:
            return None
        try:
            return num_points(self._tree, domains)
        except TooManyPointsError:
            return None

    def grid_points(self) -> GridPoints:
        """Return the points of a grid search, as Optuna's parameters, in a fixed order.

        Raises:
            SpaceError: A parameter has neither `grid:` nor `step:`; or more than a million points.
        """
        return grid_points(self._tree)

    def widened_from(self, old: SearchSpace) -> tuple[Problem, ...]:
        """Return what keeps a study of the old space from going on with this one.

        Ranges may widen, `grid` and `enqueue` may change. (Whether a grid search may go on is
        another question: only if `grid_points()` of both are equal.)
        """
        return tuple(widening_problems(self._tree, old._tree))

    def to_document(self) -> dict[str, object]:
        """Return the document as plain values; parsed with the same fixed values it is equal."""
        copy = plain(self._document)
        assert isinstance(copy, dict)
        return copy

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SearchSpace):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> str:
        return repr((self._document, sorted(self._tree.fixed.items())))

    def _settled(self, params: Mapping[str, Scalar]) -> dict[str, object]:
        stored = settled_params(self._tree, stored_params(self._tree, params, ()), ())
        return self._tree.settle(lambda name, _: stored[name])
