"""Options of validation and of early ends: what fits together, and what follows from them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from pydantic import ValidationError

from trainers.lora import LoraOptions
from trainers.lora.data.order import DataOrder
from trainers.lora.schedule import Schedule
from trainers.lora.validation.eval_sets import EvalPart, EvalSets

BASE = {"model_name_or_path": "org/model", "train_file": "train.jsonl", "val_size": 0.1}
CALLBACK = "my_package.my_module:MyCallback"
NO = {"eval_strategy": "no"}


def make(**options: object) -> LoraOptions:
    return LoraOptions.model_validate({**BASE, **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({**NO, "early_stopping_patience": 3}, "early_stopping_patience: cannot work with do_eval"),
        ({**NO, "eval_target": 1.0}, "eval_target"),
        ({**NO, "load_best_model_at_end": True}, "load_best_model_at_end"),
        ({**NO, "eval_on_start": True}, "eval_on_start"),
        ({**NO, "eval_first_pass_samples": 2}, "eval_first_pass_samples"),
        ({**NO, "predict_with_generate": True}, "predict_with_generate"),
        ({**NO, "eval_metrics": "bleu"}, "eval_metrics"),
        ({**NO, "metric_for_best_model": "eval_loss"}, "metric_for_best_model: eval_loss"),
        ({**NO, "eval_async": True}, "eval_async: true cannot work with eval_strategy: no"),
        ({**NO, "eval_set": "growing"}, "schedules none"),
        (
            {**NO, "val_size": 1, "validation_file": "v.jsonl"},
            "give one of validation_file and val_size",
        ),
        (
            {**NO, "val_size": None, "callbacks": CALLBACK, "eval_target": 1.0},
            "eval_target: cannot work",
        ),
        ({"callbacks": CALLBACK, "eval_async": True}, "cannot work with callbacks"),
        ({"eval_set": "rotating"}, "eval_max_samples: 64"),
        ({"metric_for_best_model": "rougeL"}, "'rougeL' is not reported.*need eval_metrics"),
        ({"eval_metrics": "rogue"}, "rogue"),
        ({"callbacks": ["no_colon"]}, "names no callback"),
        ({"callbacks": [{"patience": 3}]}, "names no callback"),
        ({"eval_strategy": "sometimes"}, "eval_strategy"),
    ],
)
def test_what_cannot_work_is_refused_at_once(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        make(**options)


def test_without_validation_no_validation_data_is_needed() -> None:
    options = make(**NO, val_size=None)
    assert not options.validates
    assert options.best_metric == "train_loss"
    assert options.metric_names() == {"train_loss", "epoch"}


def test_callbacks_with_validation_data_may_validate_without_a_schedule() -> None:
    assert make(**NO, callbacks=CALLBACK).validates
    assert not make(**NO, callbacks=CALLBACK, val_size=None).validates
    assert make(**NO, callbacks=CALLBACK, eval_target=1.0).best_metric == "eval_loss"


def test_trials_that_cannot_be_compared_cannot_be_pruned() -> None:
    assert make().pruning_problem() is None
    assert make(eval_strategy="epoch").pruning_problem() is None
    assert "nothing to compare" in str(make(**NO).pruning_problem())
    assert "callbacks decide" in str(make(**NO, callbacks=CALLBACK).pruning_problem())


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"eval_strategy": "epoch", "num_train_epochs": 2.5}, 3),
        ({"eval_strategy": "epoch", "max_steps": 10}, None),
        ({"eval_steps": 0.2}, 5),
        ({**NO, "eval_steps": 0.2}, 5),
        ({**NO, "callbacks": CALLBACK}, None),
    ],
)
def test_the_number_of_validations(options: dict[str, object], count: int | None) -> None:
    made = make(**options)
    assert made.num_validations() == count
    if count is not None:
        order = DataOrder(made, 100)
        assert len(Schedule(made, order.steps_per_epoch).validation_steps) == count


def test_metric_names_are_those_of_the_options() -> None:
    assert "eval_first_pass_loss" not in (make().metric_names() or ())
    names = make(eval_metrics="rouge,exact_match", eval_first_pass_samples=2).metric_names()
    assert names is not None
    assert {"rougeL", "exact_match", "eval_loss", "eval_first_pass_loss", "train_loss"} <= names
    assert {"bleu", "rougeL"} <= (make(predict_with_generate=True).metric_names() or set())
    assert make(eval_metrics="my_package.metrics:mine").metric_names() is None


@pytest.mark.parametrize(
    ("metric", "is_greater_better"),
    [
        ("eval_loss", False),
        ("loss", False),
        ("perplexity", False),
        ("eval_long_loss", False),
        ("eval_token_accuracy", True),
        ("exact_match", True),
    ],
)
def test_which_way_a_metric_is_better(metric: str, is_greater_better: bool) -> None:
    options = make(metric_for_best_model=metric, eval_metrics="exact_match")
    assert options.is_greater_better(options.best_metric) is is_greater_better
    other = make(metric_for_best_model=metric, eval_metrics="exact_match", greater_is_better=True)
    assert other.is_greater_better(other.best_metric)


def test_transformers_names_of_metrics_are_understood() -> None:
    assert make(metric_for_best_model="loss").best_metric == "eval_loss"
    assert make(metric_for_best_model="token_accuracy").best_metric == "eval_token_accuracy"
    rouge = make(metric_for_best_model="eval_rougeL", eval_metrics="rouge")
    assert rouge.best_metric == "rougeL"


def test_a_studys_metric_completes_what_is_not_given() -> None:
    completed = LoraOptions.for_metric({"a": 1}, "exact_match", "maximize")
    assert completed == {
        "a": 1,
        "metric_for_best_model": "exact_match",
        "greater_is_better": True,
    }
    own = {"metric_for_best_model": "perplexity"}
    assert LoraOptions.for_metric(own, "exact_match", "maximize") == own
    given = {"greater_is_better": False}
    assert LoraOptions.for_metric(given, "x", "maximize")["greater_is_better"] is False


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"do_eval": False}, {"eval_strategy": "no"}),
        ({"do_eval": False, "eval_strategy": "no"}, {"eval_strategy": "no"}),
        ({"do_eval": True, "evaluation_strategy": "epoch"}, {"eval_strategy": "epoch"}),
        ({"eval_strategy": False}, {"eval_strategy": "no"}),  # YAML's no
        ({"early_stopping_steps": 3}, {"early_stopping_patience": 3}),
        ({"evals_per_epoch": 1}, {"eval_strategy": "epoch"}),
        (
            {"evals_per_epoch": 4, "num_epochs": 2, "saves_per_epoch": 1},
            {"eval_steps": 0.125, "num_train_epochs": 2},
        ),
    ],
)
def test_other_names_and_values_are_understood(
    given: dict[str, object], expected: dict[str, object]
) -> None:
    assert LoraOptions.translate(given) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"do_eval": False, "eval_strategy": "steps"}, "'eval_strategy' and 'do_eval'"),
        ({"evals_per_epoch": 4}, "needs num_epochs"),
        ({"evals_per_epoch": 0, "num_epochs": 2}, "1 or more"),
    ],
)
def test_what_contradicts_itself_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoraOptions.translate(given)


# The examples of each validation


def sets_of(num_examples: int = 40, **options: object) -> EvalSets:
    return EvalSets(make(**options), {"": range(num_examples)})


def indices(parts: list[EvalPart]) -> list[int]:
    return [index for part in parts for index in part.indices]


def test_a_growing_set_rises_linearly_and_keeps_its_parts() -> None:
    sets = sets_of(eval_set="growing", eval_start_share=0.25)
    parts = [sets.at(index, 4) for index in range(1, 5)]
    assert [len(indices(some)) for some in parts] == [10, 20, 30, 40]
    for earlier, later in pairwise(parts):
        assert later[: len(earlier)] == earlier
    assert sorted(indices(parts[-1])) == list(range(40))
    assert sets.final(4) == parts[-1]
    assert len(indices(sets.at(1, 1))) == 40


def test_a_first_pass_comes_first_and_changes_no_part() -> None:
    sets = sets_of(eval_set="growing", eval_first_pass_samples=15)
    for index in range(1, 5):
        parts = sets.at(index, 4)
        first = [part for part in parts if part.is_first_pass]
        assert parts[: len(first)] == first
        assert len(indices(first)) == min(15, 10 * index)
        assert len(set(indices(parts))) == 10 * index


def test_a_rotating_set_goes_round() -> None:
    sets = sets_of(10, eval_set="rotating", eval_max_samples=4)
    seen = [indices(sets.at(index, 9)) for index in range(1, 6)]
    assert [len(some) for some in seen] == [4] * 5
    rounds = [index for some in seen for index in some]
    assert sorted(rounds[:10]) == list(range(10))
    assert rounds[10:] == rounds[:10]
    assert sorted(indices(sets.final(9))) == list(range(10))
    assert len(indices(sets_of(3, eval_set="rotating", eval_max_samples=4).at(2, 9))) == 3


def test_every_named_set_is_in_every_validation() -> None:
    names = {"large": range(30), "small": range(30, 32)}
    options = make(eval_set="growing", eval_start_share=0.01, eval_first_pass_samples=1)
    for index in range(1, 4):
        parts = EvalSets(options, names).at(index, 3)
        assert {part.name for part in parts} == set(names)


def test_the_order_depends_on_the_datas_seed_alone() -> None:
    one, other, third = (
        sets_of(eval_set="rotating", eval_max_samples=5, **given).at(1, 3)
        for given in ({"seed": 1}, {"seed": 2}, {"data_seed": 7})
    )
    assert one == other != third
