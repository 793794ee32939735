from __future__ import annotations

import time

import pytest

from search_spaces import SpaceError
from search_spaces.expressions import MAX_LENGTH, Expression

VALUES: dict[str, object] = {"r": 16, "lr": 1e-4, "name": "adam", "flag": True, "items": ["q", "v"]}


def parse(text: str) -> Expression:
    return Expression.parse(text, ("space", "x", "value"), VALUES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 * r", 32),
        ("r // 3 + r % 3", 6),
        ("-r ** 2", -256),
        ("min(r, 8, lr)", 1e-4),
        ("max(r, 8) + abs(-1)", 17),
        ("round(r / 3)", 5),
        ("round(r / 3, 2)", 5.33),
        ("int(3.9) + floor(1.5) + ceil(1.5)", 6),
        ("float(r)", 16.0),
        ("int('7')", 7),
        ("sqrt(r) + log2(r)", 8.0),
        ("8 if flag else 4", 8),
        ("8 < r <= 16 and not (r == 1)", True),
        ("name in ['adam', 'sgd'] and 'q' in items", True),
        ("name == 'adam' and flag == true and null != r", True),
        ("name + '_8bit'", "adam_8bit"),
        ("[r, 2]", [16, 2]),
        ("2 *\n r", 32),
    ],
)
def test_an_expression_has_the_value_that_python_gives(text: str, expected: object):
    value = parse(text).value(VALUES)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    "text",
    [
        "r.real",
        "name.upper()",
        "items[0]",
        "__import__('os')",
        "open('/etc/passwd')",
        "(lambda: 1)()",
        "[i for i in items]",
        "f'{r:>1000000000}'",
        "(y := 3)",
        "{'a': 1}",
        "min(*items)",
        "round(r, ndigits=2)",
        "min",
        "b'x'",
        "1j",
        "...",
        "r << 4",
        "r; r",
        "r = 3",
        "r && flag",
        "",
        "  ",
        "#",
        "\0",
        "(" * 300,
        "not " * 200 + "r",
        "1 + " * (MAX_LENGTH // 4) + "1",
        "r" * (MAX_LENGTH + 1),
    ],
)
def test_whatever_is_no_plain_expression_is_refused_when_parsed(text: str):
    with pytest.raises(SpaceError):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "4000000**4000000",
        "2**2**2**2**2**2",
        "'a' * 10**9",
        "[1] * 10**9",
        "'%1000000000d' % 1",
        "round(5, -10**9)",
        "round(5.5, 10**9)",
        "(-8) ** 0.5",
        "1e308 * 10",
        "1 / 0",
        "log2(0)",
        "r < name",
        "min(r, name)",
        "float('nan')",
        "int('x')",
        "int(items)",
        "min()",
        "floor(1, 2, 3)",
        "*".join(["(9**300)"] * 50),
    ],
)
def test_what_cannot_be_evaluated_ends_soon_with_an_error_that_names_it(text: str):
    start = time.monotonic()
    with pytest.raises(SpaceError) as caught:
        parse(text).value(VALUES)
    assert time.monotonic() - start < 1
    assert caught.value.problems[0].path == ("space", "x", "value")
    assert "cannot evaluate" in caught.value.problems[0].message


def test_a_condition_must_be_true_or_false():
    assert parse("r > 1").holds(VALUES) is True
    assert parse("'q' in items").holds(VALUES) is True
    with pytest.raises(SpaceError, match="gives 16, not true or false"):
        parse("r").holds(VALUES)


def test_equal_values_of_other_types_are_told_apart():
    expression = parse("r / 2 == 0.5 and flag == flag")
    assert expression.holds({"r": 1, "flag": 1})
    assert parse("flag").holds({"flag": True})
    with pytest.raises(SpaceError):
        parse("flag").holds({"flag": 1})
