from __future__ import annotations

import json
import pickle

import optuna
import pytest
from optuna.trial import FixedTrial, create_trial

from search_spaces import SearchSpace, SpaceError
from tests.search_spaces.documents import FIXED, lora


def test_names_are_in_document_order_searched_and_tied_apart():
    space = SearchSpace.parse(lora(), FIXED)
    assert space.names == (
        "learning_rate",
        "lora_r",
        "use_rslora",
        "batch",
        "targets",
        "lora_dropout",
    )
    assert space.tied == ("lora_alpha",)


def test_resolving_stored_params_gives_what_suggest_gave(study: optuna.Study):
    space = SearchSpace.parse(lora(), FIXED)
    for _ in range(200):
        trial = study.ask()
        values = space.suggest(trial)
        assert space.resolve(trial.params) == values
        assert list(space.resolve(trial.params)) == list(values)
        assert set(trial.params) <= set(space.names)


def test_suggest_stays_in_range_and_draws_only_active_parameters(study: optuna.Study):
    space = SearchSpace.parse(lora(), FIXED)
    for _ in range(200):
        values = space.suggest(study.ask())
        assert 2e-5 <= values["learning_rate"] <= 2e-3
        assert values["lora_alpha"] == 2 * values["lora_r"]
        assert values["batch"] in (2, 4, 6, 8)
        assert values["targets"] in ("all-linear", ["q_proj", "v_proj"])
        assert ("use_rslora" in values) == (values["lora_r"] == 32)
        assert ("lora_dropout" in values) == (values["targets"] == ["q_proj", "v_proj"])
        assert values.get("lora_dropout", 0.0) in (0.0, 0.1, 0.2, 0.3)


def test_suggest_is_a_pure_function_of_the_drawn_values():
    space = SearchSpace.parse(lora(), FIXED)
    params = {"learning_rate": 1e-4, "lora_r": 8, "batch": 2, "targets": "all"}
    expected = {**params, "lora_alpha": 16, "targets": "all-linear"}
    assert space.suggest(FixedTrial(params)) == space.suggest(FixedTrial(params)) == expected


def test_distributions_make_a_valid_template_trial(study: optuna.Study):
    space = SearchSpace.parse(lora(), FIXED)
    trial = study.ask()
    space.suggest(trial)
    distributions = space.distributions(trial.params)
    create_trial(params=trial.params, distributions=distributions, value=1.0)
    assert distributions == trial.distributions


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"lora_r": None}, ("lora_r",)),
        ({"lora_r": 9}, ("lora_r",)),
        ({"use_rslora": True}, ("use_rslora",)),
        ({"lora_alpha": 16}, ("lora_alpha",)),
        ({"unknown": 1}, ("unknown",)),
        ({"batch": 3}, ("batch",)),
        ({"batch": "four"}, ("batch",)),
        ({"learning_rate": 1.0}, ("learning_rate",)),
    ],
)
def test_resolve_refuses_what_suggest_could_not_have_stored(change: dict, path: tuple):
    space = SearchSpace.parse(lora(), FIXED)
    params = {"learning_rate": 1e-4, "lora_r": 8, "batch": 2, "targets": "all", **change}
    with pytest.raises(SpaceError) as caught:
        space.resolve(params)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_resolve_names_a_missing_active_parameter():
    space = SearchSpace.parse(lora(), FIXED)
    with pytest.raises(SpaceError, match="needs a value for use_rslora"):
        space.resolve({"learning_rate": 1e-4, "lora_r": 32, "batch": 2, "targets": "all"})


def test_violated_names_the_broken_constraints_from_resolved_values():
    space = SearchSpace.parse(lora(), FIXED)
    params = {"learning_rate": 1e-4, "lora_r": 16, "batch": 2, "targets": "attention"}
    good = space.resolve({**params, "lora_dropout": 0.1})
    bad = space.resolve({**params, "lora_dropout": 0.3})
    worse = space.resolve(
        {**params, "lora_r": 32, "use_rslora": True, "batch": 8, "targets": "all"}
    )
    assert space.violated(good) == ()
    assert space.violated(bad) == ("lora_dropout < 0.3 or batch > 2",)
    assert space.violated(worse) == ("batch * lora_r <= 128",)


def test_a_constraint_over_an_inactive_parameter_does_not_apply():
    document = {
        "space": {"a": [1, 2], "b": {"type": "int", "low": 1, "high": 4, "when": "a == 2"}},
        "constraints": ["b > 2"],
    }
    space = SearchSpace.parse(document, {})
    assert space.violated({"a": 1}) == ()
    assert space.violated({"a": 2, "b": 1}) == ("b > 2",)


def test_what_reads_an_inactive_parameter_is_inactive_itself():
    document = {
        "space": {
            "a": [1, 2],
            "b": {"type": "int", "low": 1, "high": 4, "when": "a == 2"},
            "c": {"type": "int", "low": 1, "high": 4, "when": "b > 0 or a == 1"},
            "d": {"value": "b + 1"},
            "e": {"value": 7, "when": "a == 1"},
        }
    }
    space = SearchSpace.parse(document, {})
    assert space.resolve({"a": 1}) == {"a": 1, "e": 7}
    assert space.resolve({"a": 2, "b": 3, "c": 4}) == {"a": 2, "b": 3, "c": 4, "d": 4}


def test_a_condition_may_read_a_parameter_that_comes_later():
    document = {
        "space": {"a": {"type": "int", "low": 1, "high": 2, "when": "b"}, "b": [True, False]}
    }
    space = SearchSpace.parse(document, {})
    assert space.names == ("a", "b")
    assert space.resolve({"a": 1, "b": True}) == {"a": 1, "b": True}
    assert space.resolve({"b": False}) == {"b": False}


def test_expressions_read_the_names_of_choices_that_are_lists_and_a_tied_copy_their_values():
    document = {
        "space": {
            "targets": {"type": "categorical", "choices": {"few": ["q"], "all": "all-linear"}},
            "copy": {"value": "targets"},
            "more": {"type": "int", "low": 1, "high": 2, "when": "copy in ['few']"},
        }
    }
    space = SearchSpace.parse(document, {})
    few = {"targets": ["q"], "copy": ["q"], "more": 1}
    assert space.resolve({"targets": "few", "more": 1}) == few
    assert space.violated(few) == ()


def test_expressions_read_the_values_of_named_scalar_choices():
    choices = {"small": 8, "large": 64}
    document = {
        "space": {
            "rank": {"type": "categorical", "choices": choices},
            "alpha": {"value": "2 * rank"},
        }
    }
    space = SearchSpace.parse(document, {})
    assert space.resolve({"rank": "large"}) == {"rank": 64, "alpha": 128}


def test_expressions_read_fixed_values():
    document = {
        "space": {
            "warmup": {"type": "int", "low": 1, "high": 100},
            "rest": {"value": "max_steps - warmup"},
        }
    }
    space = SearchSpace.parse(document, FIXED)
    assert space.resolve({"warmup": 10}) == {"warmup": 10, "rest": 50}


def test_stepped_floats_are_exact_decimals():
    document = {"space": {"x": {"type": "float", "low": 0.1, "high": 0.9, "step": 0.1}}}
    space = SearchSpace.parse(document, {})
    assert space.resolve({"x": 0.1 + 2 * 0.1}) == {"x": 0.3}


def test_an_expression_that_fails_only_for_some_drawn_values_is_named_with_them():
    document = {
        "space": {
            "x": {"type": "int", "low": -1000, "high": 1000},
            "y": {"value": "1 / x"},
        }
    }
    space = SearchSpace.parse(document, {})
    with pytest.raises(
        SpaceError, match=r"space\.y\.value: cannot evaluate '1 / x' for x = 0: div"
    ):
        space.suggest(FixedTrial({"x": 0}))


def test_a_space_survives_pickling_and_its_document():
    space = SearchSpace.parse(lora(), FIXED)
    document = json.loads(json.dumps(space.to_document()))
    assert pickle.loads(pickle.dumps(space)) == space
    assert SearchSpace.parse(document, FIXED) == space
    assert hash(SearchSpace.parse(document, FIXED)) == hash(space)
    assert document == lora()


def test_a_space_does_not_change_with_the_document_it_was_parsed_from():
    document = lora()
    space = SearchSpace.parse(document, FIXED)
    document["space"]["targets"]["choices"]["attention"].append("k_proj")
    document["constraints"].clear()
    assert space == SearchSpace.parse(lora(), FIXED)
    space.to_document()["space"].clear()
    assert space.to_document() == lora()


def test_spaces_that_read_other_fixed_values_differ():
    document = {"space": {"x": [1, 2], "y": {"value": "x + max_steps"}}}
    one, other = (SearchSpace.parse(document, {"max_steps": n, "z": n}) for n in (1, 2))
    assert one != other
