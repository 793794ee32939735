"""The operators and functions of expressions, bounded: no result is too long to go on with."""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable

from search_spaces.values import shown

MAX_BITS = 1024
MAX_TEXT = 10_000


def _bounded(function: Callable[..., object]) -> Callable[..., object]:
    """Take numbers only, and give no number that is too long to go on with."""

    @functools.wraps(function)
    def checked(*operands: object) -> object:
        for operand in operands:
            if not isinstance(operand, int | float):
                raise TypeError(f"{shown(operand)} is not a number")
        return _short(function(*operands))

    return checked


def _short(result: object) -> object:
    if isinstance(result, int) and result.bit_length() > MAX_BITS:
        raise OverflowError("a number grows too large")
    if isinstance(result, complex) or (isinstance(result, float) and not math.isfinite(result)):
        raise OverflowError("the result is not a finite number")
    return result


def _add(left: object, right: object) -> object:
    if isinstance(left, str) and isinstance(right, str):
        if len(left) + len(right) > MAX_TEXT:
            raise OverflowError("a text grows too long")
        return left + right
    return _bounded(operator.add)(left, right)


def _power(base: float, exponent: float) -> object:
    if isinstance(base, int) and base.bit_length() * abs(exponent) > MAX_BITS:
        raise OverflowError("a number grows too large")
    return base**exponent


def _round(value: float, digits: int = 0) -> object:
    if abs(digits) > 30:
        raise OverflowError(f"cannot round to {digits} digits")
    return round(value, digits) if digits else round(value)


def _to_int(value: object) -> object:
    if not isinstance(value, int | float | str):
        raise TypeError(f"{shown(value)} is not a number")
    return _short(int(value))


def _to_float(value: object) -> object:
    if not isinstance(value, int | float | str):
        raise TypeError(f"{shown(value)} is not a number")
    return _short(float(value))


OPERATORS: dict[type[ast.AST], Callable[..., object]] = {
    ast.Add: _add,
    ast.Sub: _bounded(operator.sub),
    ast.Mult: _bounded(operator.mul),
    ast.Div: _bounded(operator.truediv),
    ast.FloorDiv: _bounded(operator.floordiv),
    ast.Mod: _bounded(operator.mod),
    ast.Pow: _bounded(_power),
    ast.USub: _bounded(operator.neg),
    ast.UAdd: _bounded(operator.pos),
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, container: item in container,
    ast.NotIn: lambda item, container: item not in container,
}
FUNCTIONS: dict[str, Callable[..., object]] = {
    "min": min,
    "max": max,
    "abs": _bounded(abs),
    "round": _bounded(_round),
    "int": _to_int,
    "float": _to_float,
    "sqrt": _bounded(math.sqrt),
    "log2": _bounded(math.log2),
    "floor": _bounded(math.floor),
    "ceil": _bounded(math.ceil),
}
