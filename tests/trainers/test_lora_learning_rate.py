"""Learning rates: those of transformers, at each step or after each validation."""

from __future__ import annotations

import inspect
import json
import warnings

import pytest
import torch
import transformers
from pydantic import ValidationError
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR
from transformers.trainer_utils import SchedulerType

from trainers.lora.learning_rate import LearningRate
from trainers.lora.options import LoraOptions
from trainers.lora.options.schedule import (
    BY_VALIDATION,
    SCHEDULER_ARGUMENTS,
    WITHOUT_WARMUP,
)

KWARGS: dict[str, dict[str, object]] = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-5, "warmup_lr_rate": 0.2},
    "warmup_stable_decay": {"num_decay_steps": 5, "decay_type": "1-sqrt"},
    "polynomial": {"power": 2.0},
    "inverse_sqrt": {"timescale": 7},
    "cosine_with_restarts": {"num_cycles": 2},
    "reduce_lr_on_plateau": {"patience": 1, "factor": 0.5},
    "greedy": {"patience": 0, "factor": 0.5, "min_lr": 1e-6, "smooth": True, "window_size": 2},
}
METRICS = [2.0, 1.5, 1.6, 1.7, 1.8, 1.4, 1.9, 1.9, 1.9, 1.9, 1.3, 1.2]


def options_of(**options: object) -> LoraOptions:
    base = {"model_name_or_path": "m", "train_file": "t.jsonl", "val_size": 1}
    return LoraOptions.model_validate({**base, **options})


def rate_of(num_steps: int, **options: object) -> LearningRate:
    return LearningRate(options_of(**options), num_steps)


def scheduled(name: str) -> dict[str, object]:
    warmup = 0 if name in WITHOUT_WARMUP else 3
    return {
        "learning_rate": 3e-4,
        "lr_scheduler_type": name,
        "warmup_steps": warmup,
        "lr_scheduler_kwargs": KWARGS.get(name, {}),
    }


def test_every_schedule_of_transformers_is_known_with_its_arguments() -> None:
    given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    expected = {}
    for name in SchedulerType:
        function: object = TYPE_TO_SCHEDULER_FUNCTION[name]
        if name == SchedulerType.REDUCE_ON_PLATEAU:
            function = torch.optim.lr_scheduler.ReduceLROnPlateau
        elif name == SchedulerType.GREEDY:
            function = GreedyLR
        expected[name.value] = set(inspect.signature(function).parameters) - given  # type: ignore[arg-type]
    expected["greedy"].remove("verbose")  # prints
    assert {name: set(known) for name, known in SCHEDULER_ARGUMENTS.items()} == expected


@pytest.mark.parametrize("name", sorted(set(SCHEDULER_ARGUMENTS) - BY_VALIDATION))
def test_learning_rates_are_those_of_transformers(name: str) -> None:
    options = scheduled(name)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=3e-4)
    scheduler = transformers.get_scheduler(
        name, optimizer, options["warmup_steps"], 12, KWARGS.get(name)
    )
    rate = rate_of(12, **options)
    rates = []
    for step in range(1, 13):
        assert rate.at(step) == optimizer.param_groups[0]["lr"]
        rates.append(rate.at(step))
        optimizer.step()
        scheduler.step()
    assert (len(set(rates)) > 1) == (name != "constant")


@pytest.mark.parametrize("name", sorted(BY_VALIDATION))
def test_rates_by_validation_are_those_of_transformers_and_survive_a_resume(name: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=3e-4)
    scheduler = transformers.get_scheduler(
        name, optimizer, scheduler_specific_kwargs=dict(KWARGS[name])
    )
    rate, rates = rate_of(12, **scheduled(name)), []
    for metric in METRICS:
        scheduler.step(metric)  # type: ignore[arg-type]
        rate.observe(metric)
        assert rate.at(5) == rate.at(6) == optimizer.param_groups[0]["lr"]
        saved = json.loads(json.dumps(rate.state(), allow_nan=False))
        rate = rate_of(12, **scheduled(name))
        rate.load_state(saved)
        assert rate.at(5) == optimizer.param_groups[0]["lr"]
        rates.append(rate.at(5))
    assert min(rates) < 3e-4
    assert len(set(rates)) > 2


def test_a_schedule_by_steps_does_not_look_at_validations() -> None:
    rate = rate_of(12, **scheduled("linear"))
    before = [rate.at(step) for step in range(1, 13)]
    for metric in METRICS:
        rate.observe(metric)
    assert [rate.at(step) for step in range(1, 13)] == before
    assert rate.state() == {"observed": []}


def test_warmup_below_one_is_a_fraction() -> None:
    options = {"learning_rate": 1.0, "lr_scheduler_type": "linear"}
    by_ratio = rate_of(20, **options, warmup_steps=0.2)
    by_steps = rate_of(20, **options, warmup_steps=4)
    rates = [by_ratio.at(step) for step in range(1, 21)]
    assert rates == [by_steps.at(step) for step in range(1, 21)]
    assert rates[:5] == [0, 0.25, 0.5, 0.75, 1.0]
    assert rates[-1] == pytest.approx(1 / 16)


def test_a_stable_phase_of_given_length_warns_of_nothing() -> None:
    kwargs = {"num_decay_steps": 4, "num_stable_steps": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rate = rate_of(
            20,
            learning_rate=1.0,
            lr_scheduler_type="warmup_stable_decay",
            lr_scheduler_kwargs=kwargs,
        )
    assert [rate.at(step) for step in (1, 5, 7, 12)] == [
        1.0,
        1.0,
        pytest.approx(0.854, abs=1e-3),
        0,
    ]


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("linear", {"num_cycles": 2}, "linear takes no 'num_cycles'. Known for it: none"),
        ("cosine", {"cycles": 2}, "cosine takes no 'cycles'. Known for it: num_cycles"),
        ("cosine_with_min_lr", {}, "one of min_lr and min_lr_rate"),
        ("cosine_with_min_lr", {"min_lr": 1e-6, "min_lr_rate": 0.1}, "one of min_lr and"),
        ("warmup_stable_decay", {}, "num_decay_steps: 10"),
        ("reduce_lr_on_plateau", {"patiance": 1}, "mode, factor, patience"),
    ],
)
def test_wrong_arguments_of_a_schedule_are_refused_at_once(
    name: str, kwargs: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        options_of(lr_scheduler_type=name, lr_scheduler_kwargs=kwargs)


@pytest.mark.parametrize("name", sorted(WITHOUT_WARMUP))
def test_a_warmup_that_would_be_ignored_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} has no warmup, got warmup_steps: 0.1"):
        options_of(lr_scheduler_type=name, warmup_steps=0.1)


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("polynomial", {"lr_end": 1.0}, "lr_end"),
        ("cosine", {"num_cycles": "two"}, "num_cycles"),
        ("warmup_stable_decay", {"num_decay_steps": 30}, "30 of decay do not fit"),
        ("warmup_stable_decay", {"num_decay_steps": 3, "decay_type": "x"}, "decay type: x"),
        ("reduce_lr_on_plateau", {"factor": 2.0}, "Factor should be < 1.0"),
    ],
)
def test_what_does_not_suit_a_schedule_is_said_before_training(
    name: str, kwargs: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        rate_of(12, lr_scheduler_type=name, lr_scheduler_kwargs=kwargs)
