"""The points that a user wants tried first: checked, and as Optuna stores them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from search_spaces.entries import Searched
from search_spaces.problems import Path, Problem, SpaceError, did_you_mean
from search_spaces.tree import ParameterTree
from search_spaces.values import Scalar, shown


def read_enqueue(
    document: Mapping[str, object], tree: ParameterTree, is_whole: bool, problems: list[Problem]
) -> tuple[dict[str, Scalar], ...]:
    """Read the list of points and add what is wrong to the problems.

    Args:
        document: With the list under `enqueue`.
        tree: The space.
        is_whole: Whether the tree can tell which parameters are active; if not, only the single
            values are checked.
        problems: Added to.
    """
    given = document.get("enqueue")
    if given is None:
        return ()
    unread = _unread(document.get("space"), tree)
    if not isinstance(given, list | tuple):
        message = f"must be a list of points, as in [{{lora_r: 16}}]; is {shown(given)}."
        problems.append(Problem(("enqueue",), message))
        return ()
    points: list[dict[str, Scalar]] = []
    for index, point in enumerate(given):
        path = ("enqueue", index)
        try:
            params = _stored(point, tree, path, unread)
            if is_whole:
                params = settled_params(tree, params, path)
                _check_constraints(tree, params, path)
                _check_new(points, params, path)
        except SpaceError as error:
            problems.extend(error.problems)
            params = {}
        points.append(params)
    return tuple(points)


def settled_params(
    tree: ParameterTree, params: Mapping[str, Scalar], path: Path
) -> dict[str, Scalar]:
    """Return the same parameters in dependency order.

    Raises:
        SpaceError: An active one is missing, or an inactive one given.
    """
    missing = []

    def draw(name: str, parameter: Searched) -> Scalar:
        if name in params:
            return params[name]
        missing.append(name)
        return parameter.probe_points()[0]

    seen = tree.settle(draw)
    # Whether what depends on a missing one is missing too is a guess: say nothing of it.
    certain = [name for name in missing if not (tree.closure([name]) - {name}) & set(missing)]
    if certain:
        raise SpaceError([Problem(path, f"needs a value for {', '.join(certain)}.")])
    problems = [
        Problem((*path, name), _inactive(tree, name), at_key=True)
        for name in params
        if name not in seen
    ]
    if problems:
        raise SpaceError(problems)
    return {name: params[name] for name in tree.searched(seen.keys())}


def stored_params(
    tree: ParameterTree, given: Mapping[str, object], path: Path
) -> dict[str, Scalar]:
    """Return the given values as Optuna stores them; raises SpaceError for what is not allowed."""
    params: dict[str, Scalar] = {}
    problems = []
    for name, value in given.items():
        parameter = tree.parameters.get(name)
        if not isinstance(parameter, Searched):
            problems.append(Problem((*path, name), _not_searched(tree, name), at_key=True))
            continue
        try:
            params[name] = parameter.stored(value)
        except ValueError as error:
            problems.append(Problem((*path, name), str(error)))
    if problems:
        raise SpaceError(problems)
    return params


def _unread(space: object, tree: ParameterTree) -> set[object]:
    """Return the parameters that have problems of their own."""
    return set(space) - tree.parameters.keys() if isinstance(space, Mapping) else set()


def _stored(
    point: object, tree: ParameterTree, path: Path, unread: Collection[object]
) -> dict[str, Scalar]:
    if not isinstance(point, Mapping):
        raise SpaceError([Problem(path, f"must be a mapping of values, is {shown(point)}.")])
    given = {
        name if isinstance(name, str) else shown(name): item
        for name, item in point.items()
        if name not in unread
    }
    return stored_params(tree, given, path)


def _not_searched(tree: ParameterTree, name: str) -> str:
    if name in tree.parameters:
        return f"{name!r} follows from other parameters. Leave it out."
    return f"{name!r} is not searched.{did_you_mean(name, tree.searched(tree.parameters))}"


def _inactive(tree: ParameterTree, name: str) -> str:
    when = tree.whens[name].text
    return f"{name!r} does not exist at this point (when: {when}). Leave it out."


def _check_constraints(tree: ParameterTree, params: Mapping[str, Scalar], path: Path) -> None:
    seen = tree.settle(lambda name, _: params[name])
    broken = [constraint.text for constraint in tree.broken(seen)]
    if broken:
        raise SpaceError([Problem(path, f"breaks the constraint {text!r}.") for text in broken])


def _check_new(points: list[dict[str, Scalar]], params: Mapping[str, Scalar], path: Path) -> None:
    if params in points:
        earlier = points.index(dict(params)) + 1
        raise SpaceError([Problem(path, f"is the same point as number {earlier} of the list.")])
