from __future__ import annotations

from typing import Any

import pytest

from search_spaces import Problem, SearchSpace
from tests.search_spaces.documents import FIXED, lora


def edited(name: str, **keys: Any) -> tuple[Problem, ...]:
    document = lora()
    document["space"][name] = {**document["space"][name], **keys}
    document["enqueue"] = []
    return widened(document)


def widened(document: dict[str, Any], fixed: dict[str, object] = FIXED) -> tuple[Problem, ...]:
    old = SearchSpace.parse(lora(), FIXED)
    return SearchSpace.parse(document, fixed).widened_from(old)


def test_an_unchanged_space_may_go_on():
    assert widened(lora()) == ()


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("learning_rate", {"low": 1e-6, "high": 1e-2}),
        ("learning_rate", {"grid": [1e-4, 1e-3]}),
        ("batch", {"low": 0, "high": 12}),
        ("lora_dropout", {"high": 0.5}),
    ],
)
def test_wider_ranges_and_other_grids_and_other_enqueued_points_may_go_on(name: str, keys: dict):
    assert edited(name, **keys) == ()


@pytest.mark.parametrize(
    ("name", "keys", "key"),
    [
        ("learning_rate", {"low": 1e-4}, "low"),
        ("learning_rate", {"high": 1e-3}, "high"),
        ("learning_rate", {"log": False}, "log"),
        ("batch", {"step": 1}, "step"),
        ("batch", {"low": 4}, "low"),
        ("batch", {"when": "lora_r > 8"}, "when"),
        ("use_rslora", {"choices": [False, True]}, "choices"),
        ("use_rslora", {"choices": [True, False, None]}, "choices"),
        (
            "targets",
            {"choices": {"attention": ["q_proj", "v_proj"], "all": "all-linear"}},
            "choices",
        ),
        ("lora_alpha", {"value": "4 * lora_r"}, "value"),
    ],
)
def test_any_other_change_of_a_parameter_needs_a_new_study(name: str, keys: dict, key: str):
    (problem,) = edited(name, **keys)
    assert problem.path == ("space", name, key)
    assert "another `study:` name" in problem.message


def test_a_low_that_shifts_the_steps_is_refused():
    (problem,) = edited("batch", low=1, high=9)
    assert "by whole steps of 2" in problem.message


def test_added_and_removed_and_retyped_parameters_need_a_new_study():
    document = lora()
    del document["space"]["lora_alpha"]
    document["space"]["seed"] = [1, 2]
    document["space"]["batch"] = [2, 4, 8]
    paths = [problem.path for problem in widened({**document, "enqueue": []})]
    assert paths == [("space",), ("space", "batch"), ("space", "seed")]


def test_changed_constraints_and_fixed_values_that_the_space_reads_need_a_new_study():
    document = {"space": {"a": [1, 2]}, "constraints": ["a < max_steps"]}
    old = SearchSpace.parse(document, {"max_steps": 10, "other": 1})
    longer = SearchSpace.parse(document, {"max_steps": 20, "other": 2})
    looser = SearchSpace.parse({"space": document["space"]}, {"max_steps": 10})
    assert [problem.path for problem in longer.widened_from(old)] == [("fixed", "max_steps")]
    assert [problem.path for problem in looser.widened_from(old)] == [("constraints",)]
