from __future__ import annotations

import pickle
import re
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import Problem, SearchSpace, SpaceError
from tests.search_spaces.documents import FIXED, lora


def problems(
    document: Any, fixed: dict[str, object] | None = None, **options: Any
) -> tuple[Problem, ...]:
    with pytest.raises(SpaceError) as caught:
        SearchSpace.parse(document, fixed or {}, **options)
    return caught.value.problems


def entry_problem(entry: object) -> Problem:
    found = problems({"space": {"good": [1, 2], "x": entry}})
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize(
    ("entry", "below", "message"),
    [
        (5, (), "belongs in `fixed:`"),
        ("2 * good", (), r"x: \{value: ...\}"),
        ({}, (), "needs a `type`: float, int, categorical; or `value:`"),
        ({"low": 1, "high": 2}, (), "needs a `type`: float or int"),
        ({"choices": [1]}, (), "needs a `type`: categorical"),
        ({"type": "flaot", "low": 1, "high": 2}, ("type",), "Did you mean 'float'"),
        ({"type": "loguniform"}, ("type",), "log: true"),
        ({"type": [1]}, ("type",), "unknown type"),
        ({"type": "float", "low": 1}, (), "needs `high`"),
        ({"type": "float", "low": 1, "high": 2, "hihg": 3}, ("hihg",), "Did you mean 'high'"),
        ({"type": "float", "low": True, "high": 2}, ("low",), "must be a number, is True"),
        ({"type": "float", "low": "one", "high": 2}, ("low",), "must be a number, is 'one'"),
        ({"type": "float", "low": float("nan"), "high": 2}, ("low",), "is nan"),
        ({"type": "float", "low": 0, "high": "inf"}, ("high",), "is 'inf'"),
        ({"type": "float", "low": 10**400, "high": 2}, ("low",), "must be a number"),
        ({"type": "float", "low": 3, "high": 2}, ("low",), "low 3.0 is above high 2.0"),
        ({"type": "float", "low": 0, "high": 2, "log": True}, ("low",), "above 0 with log"),
        ({"type": "float", "low": 1, "high": 2, "log": "yes"}, ("log",), "true or false, is 'yes'"),
        ({"type": "float", "low": 1, "high": 2, "step": 0}, ("step",), "above 0"),
        ({"type": "float", "low": 1, "high": 2, "step": 1e-9}, ("step",), "too fine"),
        (
            {"type": "float", "low": 1, "high": 2, "log": True, "step": 1},
            ("step",),
            "no meaning with log",
        ),
        (
            {"type": "float", "low": 0, "high": 1, "step": 0.3},
            ("high",),
            r"Nearest: 0\.9 and 1\.2\.",
        ),
        ({"type": "int", "low": 1, "high": 8, "step": 3}, ("high",), r"Nearest: 7 and 10\."),
        ({"type": "int", "low": 1, "high": 8.5}, ("high",), "whole number, is 8.5"),
        ({"type": "int", "low": 1, "high": 2**60}, ("high",), "whole number up to"),
        ({"type": "int", "low": 1, "high": 8, "grid": [1, 9]}, ("grid", 1), "not in the range"),
        ({"type": "int", "low": 1, "high": 8, "grid": [1, 1]}, ("grid", 1), "listed twice"),
        ({"type": "int", "low": 1, "high": 3, "grid": 5}, ("grid",), "fall on 3 different"),
        ({"type": "int", "low": 1, "high": 3, "grid": 1}, ("grid",), "from 2 up"),
        ({"type": "int", "low": 1, "high": 3, "grid": []}, ("grid",), "at least one"),
        ({"type": "int", "low": 1, "high": 7, "step": 2, "grid": [2]}, ("grid", 0), "Nearest: 1"),
        ([], ("choices",), "at least one choice"),
        ([1, True], ("choices", 1), "equal to an earlier"),
        ([["q"], 1], ("choices", 0), r"choices: \{attention: \[q_proj, v_proj\]"),
        ([{1, 2}], ("choices",), "put it in quotes"),
        ([float("nan")], ("choices",), "not a finite number"),
        ({"type": "categorical", "choices": {8: "a"}}, ("choices",), "Put it in quotes"),
        (
            {"type": "categorical", "choices": {"a": 1, "b": 1}},
            ("choices", "b"),
            "same value as 'a'",
        ),
        ({"type": "categorical", "choices": "ab"}, ("choices",), "must be a list"),
        ({"value": "cosine"}, ("value",), "unknown name 'cosine'.*put quotes inside"),
        ({"value": "2 *"}, ("value",), "not an expression"),
        ({"value": {1}}, ("value",), "neither text"),
        ({"value": "x + 1"}, (), "depends on itself: x -> x"),
        ({"value": 1, "when": True}, ("when",), "an expression in quotes"),
        ({"value": 1, "when": "goood > 1"}, ("when",), "Did you mean 'good'"),
        ({"value": 1, "when": "good"}, ("when",), "gives 1, not true or false"),
        ({"value": 1, "when": "good == 'a'"}, ("when",), "good is never 'a'"),
        ({"value": "good / 0"}, ("value",), "division by zero"),
    ],
)
def test_a_wrong_entry_is_one_problem_at_its_place(entry: object, below: tuple, message: str):
    problem = entry_problem(entry)
    assert problem.path == ("space", "x", *below)
    assert re.search(message, problem.message), problem.message


def test_all_problems_are_reported_at_once():
    found = problems(
        {
            "space": {"x": {"type": "int", "low": 1}, "y": 5, "z": [1, 2]},
            "constraints": ["z >", "w < 1", 7],
            "enqueue": [{"z": 9, "x": 1, "q": 1}, 5],
        }
    )
    assert [problem.path for problem in found] == [
        ("space", "x"),
        ("space", "y"),
        ("constraints", 0),
        ("constraints", 1),
        ("constraints", 2),
        ("enqueue", 0, "z"),
        ("enqueue", 0, "q"),
        ("enqueue", 1),
    ]


@pytest.mark.parametrize(
    "document", [{}, {"space": None}, {"space": {}}, {"space": {"a": {"value": 1}}}]
)
def test_a_space_that_searches_nothing_is_refused(document: dict):
    (found,) = problems(document)
    assert found.path == ("space",)
    assert "nothing to search" in found.message


def test_unknown_and_fixed_and_reserved_names_are_problems_of_the_key():
    space = {"lora_rr": [1, 2], "max_steps": [1, 2], "true": [1, 2], "lora_r": [1, 2]}
    found = problems({"space": space}, FIXED, known_names=["lora_r", "max_steps"])
    assert [problem.path[-1] for problem in found] == ["lora_rr", "max_steps", "true"]
    assert all(problem.at_key for problem in found)
    assert "Did you mean 'lora_r'?" in found[0].message


def test_a_circle_is_named():
    space = {"a": {"value": "b"}, "b": [1, 2], "c": {"value": "d + b"}, "d": {"value": "c"}}
    (found,) = problems({"space": space})
    assert "c -> d -> c" in found.message


def test_a_constraint_that_reads_no_searched_parameter_is_refused():
    document = {
        "space": {"a": [1, 2], "b": {"value": "2 * a"}, "c": {"value": 3}},
        "constraints": ["b > 2", "c < 4", "max_steps > 1"],
    }
    found = problems(document, FIXED)
    assert [problem.path for problem in found] == [("constraints", 1), ("constraints", 2)]


def test_constraints_that_leave_no_point_of_a_finite_space_are_refused():
    space = {"a": [1, 2], "b": {"type": "int", "low": 1, "high": 30}, "c": [1, 2, 3]}
    (found,) = problems({"space": space, "constraints": ["a + b < 2", "b > 0"]})
    assert found.path == ("constraints",)
    assert "a + b < 2; b > 0" in found.message


@pytest.mark.parametrize(
    ("point", "below", "message"),
    [
        ({"lora_r": 16}, (), "needs a value for learning_rate, batch, targets"),
        ({"lora_r": 7}, ("lora_r",), "not one of the choices: 8, 16, 32"),
        ({"lora_r": True}, ("lora_r",), "not one of the choices"),
        ({"lora_alpha": 32}, ("lora_alpha",), "Leave it out"),
        ({"lora_rr": 32}, ("lora_rr",), "Did you mean 'lora_r'"),
        (None, (), "must be a mapping"),
        ({"batch": 3, "lora_r": 8}, ("batch",), "Nearest: 2"),
    ],
)
def test_a_wrong_enqueued_point_is_a_problem_at_its_place(
    point: object, below: tuple, message: str
):
    document = lora()
    document["enqueue"].append(point)
    (found,) = problems(document, FIXED)
    assert found.path == ("enqueue", 1, *below)
    assert message in found.message


def test_an_enqueued_point_that_is_infeasible_inactive_or_repeated_is_refused():
    document = lora()
    good = {**document["enqueue"][0]}
    document["enqueue"] += [
        {**good, "lora_r": 32, "use_rslora": True, "batch": 8},
        {**good, "use_rslora": True},
        {**good, "targets": "all-linear"},
    ]
    found = problems(document, FIXED)
    assert [problem.path for problem in found] == [
        ("enqueue", 1),
        ("enqueue", 2, "use_rslora"),
        ("enqueue", 3),
    ]


def test_enqueued_points_are_stored_as_optuna_stores_them():
    document = lora()
    document["enqueue"] = [
        {"targets": ["q_proj", "v_proj"], "lora_dropout": "0.2", "lora_r": 8.0, "batch": 2.0,
         "learning_rate": "2e-4"},
    ]  # fmt: skip
    space = SearchSpace.parse(document, FIXED)
    expected = {"learning_rate": 2e-4, "lora_r": 8, "batch": 2, "targets": "attention"}
    assert space.enqueued == ({**expected, "lora_dropout": 0.2},)
    assert type(space.enqueued[0]["lora_r"]) is int
    space.resolve(space.enqueued[0])


def test_a_cyclic_document_is_a_problem():
    loop: list[object] = []
    loop.append(loop)
    assert "nested deeper" in entry_problem({"value": loop}).message


def test_problems_survive_pickling():
    with pytest.raises(SpaceError) as caught:
        SearchSpace.parse({"space": 3}, {})
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


EXPRESSION_PARTS = [
    "a",
    "b",
    "==",
    ">",
    "1",
    "'x'",
    "(",
    ")",
    "or",
    "not",
    "**",
    "[",
    "]",
    ".",
    "/",
    "if",
]
expressions = st.lists(st.sampled_from(EXPRESSION_PARTS), max_size=8).map(" ".join)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | expressions
)
words = ["type", "low", "high", "log", "step", "grid", "when", "value", "choices", "float", "int"]
keys = st.sampled_from([*words, "a", "b", "categorical"]) | st.integers(0, 3)
garbage = st.recursive(
    scalars | st.sampled_from(words),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {"type": st.sampled_from(["float", "int", "categorical"])},
    optional={
        "low": scalars,
        "high": scalars,
        "step": scalars,
        "log": st.booleans(),
        "grid": scalars | st.lists(scalars, max_size=3),
        "choices": st.lists(scalars, max_size=3) | garbage,
        "when": expressions,
    },
)
tied = st.fixed_dictionaries({"value": expressions | garbage}, optional={"when": expressions})
documents = st.fixed_dictionaries(
    {},
    optional={
        "space": garbage | st.dictionaries(keys, entries | tied | garbage, max_size=4),
        "constraints": garbage | st.lists(expressions, max_size=3),
        "enqueue": garbage | st.lists(st.dictionaries(keys, scalars, max_size=3), max_size=3),
    },
)


def paths(node: object, path: tuple = ()) -> list[tuple]:
    """Return the path of everything in a document but the document."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    below = [(item, (*path, key)) for key, item in items]
    deeper = [paths(item, at) for item, at in below if isinstance(item, dict | list)]
    return [at for _, at in below] + [at for found in deeper for at in found]


@st.composite
def damaged_documents(draw: st.DrawFn) -> dict[str, Any]:
    document = lora()
    small = st.integers(-1, 9) | st.sampled_from([0.1, "1e-3", "batch", "lora_r > 8", True, [8]])
    for _ in range(draw(st.integers(1, 2))):
        *parents, last = draw(st.sampled_from(paths(document)))
        node: Any = document
        for key in parents:
            node = node[key]
        node[last] = draw(small | garbage | entries | tied)
    return document


@settings(max_examples=300, deadline=None, derandomize=True)
@given(damaged_documents())
def test_a_damaged_document_is_refused_or_gives_a_space_that_works(document: dict):
    try:
        space = SearchSpace.parse(document, FIXED)
    except SpaceError:
        return
    assert SearchSpace.parse(space.to_document(), FIXED) == space
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(3):
        trial = study.ask()
        try:
            values = space.suggest(trial)
        except SpaceError:  # an expression that no point tried at parsing made fail
            continue
        assert space.resolve(trial.params) == values
        space.violated(values)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(documents, st.dictionaries(st.sampled_from(["b", "c"]), scalars))
def test_whatever_a_document_holds_only_a_space_error_is_raised(document: dict, fixed: dict):
    try:
        space = SearchSpace.parse(document, fixed)
    except SpaceError:
        return
    assert SearchSpace.parse(space.to_document(), fixed) == space
