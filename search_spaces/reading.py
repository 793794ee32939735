"""Reads the `space` and `constraints` of a document into a tree; collects every problem."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from search_spaces.categorical import CategoricalParameter
from search_spaces.dependencies import dependency_order
from search_spaces.entries import Entry, Searched
from search_spaces.expressions import RESERVED, Expression
from search_spaces.numeric import FloatParameter, IntParameter
from search_spaces.problems import Path, Problem, SpaceError, did_you_mean
from search_spaces.tied import TiedParameter
from search_spaces.tree import ParameterTree
from search_spaces.values import shown

MAX_PARAMETERS = 200
KINDS: dict[str, type[Entry]] = {
    "float": FloatParameter,
    "int": IntParameter,
    "categorical": CategoricalParameter,
}
_OTHER_WORDS = {
    "bool": "Write {type: categorical, choices: [true, false]}.",
    "choice": "Write type: categorical.",
    "integer": "Write type: int.",
    "loguniform": "Write type: float and log: true.",
    "str": "Write type: categorical.",
    "uniform": "Write type: float.",
}


def read_tree(
    document: Mapping[str, object],
    fixed: Mapping[str, object],
    known_names: Collection[str] | None,
    problems: list[Problem],
) -> tuple[ParameterTree, bool]:
    """Read a tree of all that can be read, and add what is wrong to the problems.

    Returns:
        The tree, and whether it is whole: if not, only its single parameters are of use.
    """
    num_earlier = len(problems)
    entries = _space(document.get("space"), problems)
    names = [name for name in entries if _is_good_name(name, fixed, known_names, problems)]
    parameters: dict[str, Entry] = {}
    for name in names:
        entry = _entry(name, entries[name], problems)
        if entry is not None:
            parameters[name] = entry
    known = [*entries, *(name for name in fixed if isinstance(name, str))]
    whens, formulas = _expressions(parameters, known, problems)
    constraints = _constraints(document.get("constraints"), known, problems)
    reads = {name: _reads(parameters, whens.get(name), formulas.get(name)) for name in parameters}
    used = {read for e in (*whens.values(), *formulas.values(), *constraints) for read in e.names}
    tree = ParameterTree(
        parameters=parameters,
        whens=whens,
        formulas=formulas,
        constraints=constraints,
        fixed={
            name: value for name, value in fixed.items() if name in used and name not in entries
        },
        order=dependency_order(reads, problems),
    )
    if len(problems) == num_earlier:
        problems.extend(_meaning_problems(tree))
    return tree, len(problems) == num_earlier


def _space(space: object, problems: list[Problem]) -> dict[str, object]:
    if space is None or space == {}:
        problems.append(
            Problem(
                ("space",),
                "there is nothing to search. Give a parameter, as in lora_r: [8, 16, 32]; to train "
                "one config without a search, use `hpo train`.",
            )
        )
        return {}
    if not isinstance(space, Mapping):
        problems.append(
            Problem(("space",), f"must be a mapping of parameter names, is {shown(space)}.")
        )
        return {}
    if len(space) > MAX_PARAMETERS:
        problems.append(
            Problem(("space",), f"has {len(space)} parameters; at most {MAX_PARAMETERS}.")
        )
        return {}
    for name in space:
        if not isinstance(name, str):
            message = f"a parameter's name must be text, is {shown(name)}. Put it in quotes."
            problems.append(Problem(("space", str(shown(name))), message, at_key=True))
    return {str(name): entry for name, entry in space.items() if isinstance(name, str)}


def _is_good_name(
    name: str,
    fixed: Mapping[str, object],
    known_names: Collection[str] | None,
    problems: list[Problem],
) -> bool:
    message = None
    if name in RESERVED:
        message = f"{name!r} is a constant in expressions and cannot be a parameter's name."
    elif name in fixed:
        message = f"{name!r} is also in `fixed:`. Keep one of the two."
    elif known_names is not None and name not in known_names:
        message = f"unknown parameter {name!r}.{did_you_mean(name, known_names)}"
    if message is not None:
        problems.append(Problem(("space", name), message, at_key=True))
    return name not in RESERVED


def _entry(name: str, given: object, problems: list[Problem]) -> Entry | None:
    path: Path = ("space", name)
    if isinstance(given, list | tuple):
        given = {"type": "categorical", "choices": given}
    if not isinstance(given, Mapping):
        message = (
            f"{shown(given)} is no range to search. A value that all trials share belongs in "
            f"`fixed:`; for one that follows from others write {name}: {{value: ...}}."
        )
        problems.append(Problem(path, message))
        return None
    kind = _kind(given, path, problems)
    if kind is None:
        return None
    keys = {shown(key) if not isinstance(key, str) else key: item for key, item in given.items()}
    try:
        entry = kind.model_validate(keys)
    except ValidationError as error:
        problems.extend(_problem(detail, path, kind) for detail in error.errors(include_url=False))
        return None
    faults = [Problem((*path, *below), message) for below, message in entry.faults()]
    problems.extend(faults)
    return None if faults else entry


def _kind(
    given: Mapping[object, object], path: Path, problems: list[Problem]
) -> type[Entry] | None:
    if "type" not in given:
        if "value" in given:
            return TiedParameter
        guess = "categorical" if "choices" in given else "float or int"
        if not {"choices", "low", "high"} & given.keys():
            guess = f"{', '.join(KINDS)}; or `value:` for a parameter that follows from others"
        problems.append(Problem(path, f"needs a `type`: {guess}."))
        return None
    named = given["type"]
    if isinstance(named, str) and named in KINDS:
        return KINDS[named]
    hint = _OTHER_WORDS.get(named, did_you_mean(named, KINDS)) if isinstance(named, str) else ""
    message = f"unknown type {shown(named)}. Known: {', '.join(KINDS)}. {hint.strip()}".rstrip()
    problems.append(Problem((*path, "type"), message))
    return None


def _problem(detail: ErrorDetails, path: Path, kind: type[Entry]) -> Problem:
    where = (*path, *detail["loc"])
    key = str(detail["loc"][0])
    if detail["type"] == "missing":
        return Problem(path, f"needs `{key}`.")
    if detail["type"] == "extra_forbidden":
        keys = list(kind.model_fields)
        near = did_you_mean(key, keys)
        return Problem(where, f"unknown key {key!r}.{near} Known: {', '.join(keys)}.", at_key=True)
    if detail["type"] == "value_error":
        return Problem(where, str(detail["ctx"]["error"]))
    if detail["type"] == "bool_type":
        return Problem(where, f"must be true or false, is {shown(detail['input'])}.")
    return Problem(where, f"{detail['msg']}, is {shown(detail['input'])}.")


def _expressions(
    parameters: Mapping[str, Entry], known: Collection[str], problems: list[Problem]
) -> tuple[dict[str, Expression], dict[str, Expression]]:
    whens: dict[str, Expression] = {}
    formulas: dict[str, Expression] = {}
    for name, entry in parameters.items():
        try:
            if entry.when is not None:
                whens[name] = Expression.parse(entry.when, ("space", name, "when"), known)
        except SpaceError as error:
            problems.extend(error.problems)
        try:
            if isinstance(entry, TiedParameter) and isinstance(entry.value, str):
                formulas[name] = Expression.parse(entry.value, ("space", name, "value"), known)
        except SpaceError as error:
            hint = " If text is meant, put quotes inside, as in value: \"'cosine'\"."
            problems.extend(Problem(p.path, p.message + hint) for p in error.problems)
    return whens, formulas


def _constraints(
    given: object, known: Collection[str], problems: list[Problem]
) -> tuple[Expression, ...]:
    if given is None:
        return ()
    if not isinstance(given, list | tuple):
        message = f'must be a list of expressions, as in ["lora_r <= 64"]; is {shown(given)}.'
        problems.append(Problem(("constraints",), message))
        return ()
    constraints = []
    for index, text in enumerate(given):
        path = ("constraints", index)
        if not isinstance(text, str):
            message = f'must be an expression in quotes, as in "lora_r <= 64"; is {shown(text)}.'
            problems.append(Problem(path, message))
            continue
        try:
            constraints.append(Expression.parse(text, path, known))
        except SpaceError as error:
            problems.extend(error.problems)
    return tuple(constraints)


def _reads(parameters: Mapping[str, Entry], *expressions: Expression | None) -> list[str]:
    names = {name for expression in expressions if expression for name in expression.names}
    return [name for name in parameters if name in names]


def _meaning_problems(tree: ParameterTree) -> Iterator[Problem]:
    if not tree.searched(tree.parameters):
        message = "there is nothing to search: every parameter here is tied. Use `hpo train`."
        yield Problem(("space",), message)
    for constraint in tree.constraints:
        if not tree.searched(tree.closure(constraint.names)):
            message = (
                f"{constraint.text!r} reads no searched parameter, so it is the same for all "
                f"trials. Remove it."
            )
            yield Problem(constraint.path, message)
    for expression in tree.expressions():
        for name, text in expression.constants_compared():
            yield from _comparison_problems(tree, expression, name, text)


def _comparison_problems(
    tree: ParameterTree, expression: Expression, name: str, text: str
) -> Iterator[Problem]:
    parameter = tree.parameters.get(name)
    if not isinstance(parameter, Searched):
        return
    seen = []
    if isinstance(parameter, CategoricalParameter):
        seen = [parameter.seen(stored) for stored in parameter.points()]
    if text not in seen:
        near = did_you_mean(text, [choice for choice in seen if isinstance(choice, str)])
        choices = f" Its choices: {', '.join(map(shown, seen))}." if seen else ""
        yield Problem(expression.path, f"{name} is never {shown(text)}.{near}{choices}")
