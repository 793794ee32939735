from __future__ import annotations

import itertools
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import SearchSpace, SpaceError
from search_spaces.numeric import Steps
from tests.search_spaces.documents import FIXED, lora

NAMES = ("a", "b", "c", "d")
SIZES = (2, 3, 2, 3)
WHENS = (None, "a == 1", "b >= 2", "a == 2 or b == 1", "c != 1")
CONSTRAINTS = ("a + b <= 4", "b * c != 2", "d > 1 or a == 2", "c + d <= 4", "t <= 6")


@st.composite
def finite_documents(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.permutations(NAMES))
    space: dict[str, Any] = {
        name: {"type": "int", "low": 1, "high": SIZES[NAMES.index(name)]} for name in names
    }
    for name, allowed in (("b", 2), ("c", 3), ("d", 5)):
        when = draw(st.sampled_from(WHENS[:allowed]))
        if when:
            space[name]["when"] = when
    space["t"] = {"value": "a * b"}
    return {"space": space, "constraints": draw(st.lists(st.sampled_from(CONSTRAINTS), max_size=3))}


def brute_force(document: dict[str, Any]) -> set[frozenset[tuple[str, int]]]:
    """Return all feasible points, by Python itself, from every combination of all values."""
    space = document["space"]
    points = set()
    for combination in itertools.product(*(range(1, size + 1) for size in SIZES)):
        point = dict(zip(NAMES, combination, strict=True))
        for name in NAMES:  # the conditions read earlier names only
            when = space[name].get("when")
            if when and not truth(when, point, otherwise=False):
                del point[name]
        tied = {"t": point["a"] * point["b"]} if {"a", "b"} <= point.keys() else {}
        if all(truth(text, point | tied, otherwise=True) for text in document["constraints"]):
            points.add(frozenset(point.items()))
    return points


def truth(text: str, point: dict[str, int], otherwise: bool) -> bool:
    code = compile(text, "", "eval")
    return bool(eval(code, {}, point)) if set(code.co_names) <= point.keys() else otherwise


@settings(max_examples=150, deadline=None, derandomize=True)
@given(finite_documents())
def test_a_grid_visits_each_feasible_point_exactly_once(document: dict[str, Any]):
    expected = brute_force(document)
    try:
        space = SearchSpace.parse(document, {})
    except SpaceError:
        assert expected == set()
        return
    points = list(space.grid_points())
    assert len(points) == len(space.grid_points()) == space.num_points() == len(expected)
    assert {frozenset(point.items()) for point in points} == expected
    assert all(not space.violated(space.resolve(point)) for point in points)


def test_the_first_parameter_varies_slowest():
    space = SearchSpace.parse({"space": {"a": ["x", "y"], "b": [3, 1, 2]}}, {})
    points = [tuple(point.values()) for point in space.grid_points()]
    assert points == [("x", 3), ("x", 1), ("x", 2), ("y", 3), ("y", 1), ("y", 2)]


def test_grid_points_are_indexable_picklable_and_equal_if_they_visit_the_same():
    points = SearchSpace.parse(lora(), FIXED).grid_points()
    edited = lora()
    edited["space"]["lora_r"] = [8, 32, 16]
    assert points[-1] == list(points)[-1]
    assert points[1:3] == [points[1], points[2]]
    assert pickle.loads(pickle.dumps(points)) == points
    assert SearchSpace.parse(edited, FIXED).grid_points() != points
    with pytest.raises(IndexError):
        points[len(points)]


def test_inactive_parameters_do_not_multiply_points():
    space = {"a": [1, 2], "b": {"type": "int", "low": 1, "high": 100, "when": "a == 2"}}
    assert SearchSpace.parse({"space": space}, {}).num_points() == 101


def test_a_grid_limits_the_grid_search_and_not_what_can_be_drawn():
    space = {"x": {"type": "int", "low": 1, "high": 100, "grid": [1, 10, 100]}}
    parsed = SearchSpace.parse({"space": space}, {})
    assert len(parsed.grid_points()) == 3
    assert parsed.num_points() == 100


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"type": "float", "low": 0, "high": 1, "grid": 5}, [0, 0.25, 0.5, 0.75, 1]),
        ({"type": "float", "low": 1e-5, "high": 1e-3, "log": True, "grid": 3}, [1e-5, 1e-4, 1e-3]),
        ({"type": "float", "low": 0, "high": 0.3, "step": 0.1}, [0, 0.1, 0.2, 0.3]),
        ({"type": "float", "low": 0, "high": 0.3, "step": 0.1, "grid": 2}, [0, 0.3]),
        ({"type": "float", "low": 0, "high": 1, "grid": [0.5, "1e-1"]}, [0.5, 0.1]),
        ({"type": "int", "low": 1, "high": 64, "log": True, "grid": 4}, [1, 4, 16, 64]),
        ({"type": "int", "low": 2, "high": 10, "step": 4}, [2, 6, 10]),
        ({"type": "categorical", "choices": {"a": [1], "b": [2]}}, ["a", "b"]),
    ],
)
def test_grid_points_of_one_parameter(entry: dict[str, Any], expected: list):
    points = SearchSpace.parse({"space": {"x": entry}}, {}).grid_points()
    assert [point["x"] for point in points] == expected


def test_every_parameter_without_a_grid_is_named():
    real = {"type": "float", "low": 0, "high": 1}
    space = SearchSpace.parse({"space": {"x": real, "y": real, "z": [1]}}, {})
    assert space.num_points() is None
    with pytest.raises(SpaceError, match="grid: 5") as caught:
        space.grid_points()
    assert [problem.path for problem in caught.value.problems] == [("space", "x"), ("space", "y")]


def test_a_grid_of_more_than_a_million_points_is_refused_but_counted_where_that_is_cheap():
    space = {name: {"type": "int", "low": 1, "high": 1000} for name in "abc"}
    parsed = SearchSpace.parse({"space": space, "constraints": ["a <= 10"]}, {})
    assert parsed.num_points() == 10 * 1000**2
    with pytest.raises(SpaceError, match="more than 1,000,000 points"):
        parsed.grid_points()


def test_a_space_too_large_to_count_has_no_number():
    space = {name: {"type": "int", "low": 1, "high": 2**50} for name in "ab"}
    parsed = SearchSpace.parse({"space": space, "constraints": ["a > 0"]}, {})
    assert parsed.num_points() is None


def test_a_grid_that_the_constraints_leave_empty_is_refused():
    space = {"x": {"type": "int", "low": 1, "high": 9, "grid": [1, 2]}}
    parsed = SearchSpace.parse({"space": space, "constraints": ["x > 2"]}, {})
    with pytest.raises(SpaceError, match="no point of the grid"):
        parsed.grid_points()


@given(st.integers(-50, 50), st.integers(1, 40), st.integers(1, 30))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_steps_are_the_decimals_a_user_would_write(low: int, step: int, num: int):
    steps = Steps(low / 100, (low + num * step) / 100, step / 100)
    assert list(steps) == [(low + i * step) / 100 for i in range(num + 1)]
    assert all(steps.holds(low / 100 + i * (step / 100)) for i in range(num + 1))
