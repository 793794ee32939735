"""Expressions of `when`, `value` and `constraints`: checked when parsed, evaluated by simpleeval.

The syntax tree is checked against a short list of allowed nodes before simpleeval sees it, and
every operator is bounded (`operators`), so an expression can neither reach outside nor run long.
"""

from __future__ import annotations

import ast
import functools
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from simpleeval import EvalWithCompoundTypes, InvalidExpression  # type: ignore[import-untyped]

from search_spaces.operators import FUNCTIONS, OPERATORS
from search_spaces.problems import Path, Problem, SpaceError, did_you_mean
from search_spaces.values import plain, shown

MAX_LENGTH = 1000
MAX_DEPTH = 60
CONSTANTS: Mapping[str, bool | None] = {"true": True, "false": False, "null": None}
RESERVED = (*CONSTANTS, "True", "False", "None")


@dataclass(frozen=True)
class Expression:
    """A checked expression.

    Attributes:
        text: As the user wrote it.
        path: Where in the document, for errors.
        names: The parameters it reads, searched, tied or fixed.
    """

    text: str
    path: Path
    names: frozenset[str]

    @classmethod
    def parse(cls, text: str, path: Path, known: Collection[str]) -> Expression:
        """Check an expression against the names it may read.

        Raises:
            SpaceError: With everything that is wrong with it.
        """
        try:
            tree = _tree(text)
        except ValueError as error:
            raise SpaceError([Problem(path, str(error))]) from None
        faults = dict.fromkeys(_faults(tree, known))
        if faults:
            raise SpaceError([Problem(path, fault) for fault in faults])
        return cls(text, path, frozenset(_names(tree)))

    def is_readable(self, values: Mapping[str, object]) -> bool:
        """Return whether every name it reads has a value, which an inactive parameter has not."""
        return self.names <= values.keys()

    def holds(self, values: Mapping[str, object]) -> bool:
        """Return the truth of a condition.

        Raises:
            SpaceError: It cannot be evaluated for these values, or is neither true nor false.
        """
        key = tuple((name, type(values[name]), values[name]) for name in self.names)
        try:
            result = _cached(self.text, key)
        except TypeError:  # a fixed value that is a list has no hash, or the types do not fit
            result = self._evaluate(values)
        except _EVALUATION_ERRORS as error:
            raise self._failed(values, str(error)) from None
        if not isinstance(result, bool):
            raise self._failed(values, f"it gives {shown(result)}, not true or false")
        return result

    def value(self, values: Mapping[str, object]) -> object:
        """Return the value of a formula; raises SpaceError if it has none for these values."""
        result = self._evaluate(values)
        try:
            plain(result)
        except ValueError as error:
            raise self._failed(values, f"the result {error}") from None
        return result

    def constants_compared(self) -> Iterator[tuple[str, str]]:
        """Yield (name, text) for every comparison of a parameter with quoted text."""
        for node in ast.walk(_tree(self.text)):
            if isinstance(node, ast.Compare) and len(node.ops) == 1:
                sides = [node.left, node.comparators[0]]
                names = [side.id for side in sides if isinstance(side, ast.Name)]
                texts = [text for side in sides for text in _texts(side)]
                if isinstance(node.ops[0], ast.Eq | ast.NotEq | ast.In | ast.NotIn):
                    yield from ((name, text) for name in names for text in texts)

    def _evaluate(self, values: Mapping[str, object]) -> object:
        try:
            return _evaluate(self.text, {name: values[name] for name in self.names})
        except _EVALUATION_ERRORS as error:
            raise self._failed(values, str(error)) from None

    def _failed(self, values: Mapping[str, object], reason: str) -> SpaceError:
        given = ", ".join(f"{name} = {shown(values[name])}" for name in sorted(self.names))
        where = f" for {given}" if given else ""
        return SpaceError([Problem(self.path, f"cannot evaluate {self.text!r}{where}: {reason}.")])


@functools.lru_cache(maxsize=1024)
def _tree(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"is {len(text)} characters long; an expression has at most {MAX_LENGTH}.")
    if not text.strip():
        raise ValueError("is empty. Write an expression, as in '2 * lora_r'.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip().replace("\n", " "), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(
            f"{shown(text)} is not an expression ({reason}). Expressions are written as in Python: "
            f"==, !=, <=, and, or, not, in."
        ) from None
    if _depth(tree) > MAX_DEPTH:
        raise ValueError(f"is nested deeper than {MAX_DEPTH} levels.")
    return tree


def _depth(tree: ast.AST) -> int:
    level: list[ast.AST] = [tree]
    depth = 0
    while level:
        depth += 1
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def _faults(tree: ast.expr, known: Collection[str]) -> Iterator[str]:
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _call_faults(node)
        elif isinstance(node, ast.Name):
            if id(node) not in called and node.id not in CONSTANTS and node.id not in known:
                yield f"unknown name {node.id!r}.{did_you_mean(node.id, known)}"
        elif isinstance(node, ast.Constant):
            if not (node.value is None or isinstance(node.value, bool | int | float | str)):
                yield f"{shown(node.value)} is not allowed in an expression."
        elif not isinstance(node, _ALLOWED_NODES):
            kind = type(node).__name__
            yield f"{kind} is not allowed in an expression. Allowed: {_ALLOWED_TEXT}."


def _call_faults(node: ast.Call) -> Iterator[str]:
    if not isinstance(node.func, ast.Name):
        yield "only functions called by their name are allowed in an expression."
    elif node.func.id not in FUNCTIONS:
        near = did_you_mean(node.func.id, FUNCTIONS)
        yield f"unknown function {node.func.id!r}.{near} Known: {', '.join(FUNCTIONS)}."
    if node.keywords:
        yield "functions take no named arguments in an expression."


def _names(tree: ast.expr) -> Iterator[str]:
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and id(node) not in called and node.id not in CONSTANTS:
            yield node.id


def _texts(node: ast.expr) -> list[str]:
    parts = node.elts if isinstance(node, ast.List | ast.Tuple) else [node]
    constants = [part.value for part in parts if isinstance(part, ast.Constant)]
    return [constant for constant in constants if isinstance(constant, str)]


@functools.lru_cache(maxsize=65536)
def _cached(text: str, key: tuple[tuple[str, type, object], ...]) -> object:
    return _evaluate(text, {name: value for name, _, value in key})


def _evaluate(text: str, values: Mapping[str, object]) -> object:
    if not hasattr(_local, "evaluator"):  # making one costs more than evaluating
        _local.evaluator = EvalWithCompoundTypes(OPERATORS, dict(FUNCTIONS))
    _local.evaluator.names = {**CONSTANTS, **values}
    return _local.evaluator.eval(text, previously_parsed=_tree(text))


_local = threading.local()
_EVALUATION_ERRORS = (InvalidExpression, ArithmeticError, TypeError, ValueError)
_ALLOWED_TEXT = (
    "numbers, quoted text, names, + - * / // % **, comparisons, and, or, not, in, if/else"
)
_ALLOWED_NODES = (
    ast.BoolOp,
    ast.And,
    ast.Or,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.IfExp,
    ast.List,
    ast.Tuple,
    ast.Load,
    *OPERATORS,
)
