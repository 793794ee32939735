"""Steps, validations and data order as functions of the step."""

from __future__ import annotations

import pytest

from trainers.lora.data.order import DataOrder
from trainers.lora.options import LoraOptions
from trainers.lora.schedule import Schedule


def options_of(**options: object) -> LoraOptions:
    base = {"model_name_or_path": "m", "train_file": "t.jsonl", "val_size": 1}
    return LoraOptions.model_validate({**base, **options})


def order_of(num_samples: int = 100, **options: object) -> DataOrder:
    return DataOrder(options_of(**options), num_samples)


def make(**options: object) -> Schedule:
    return Schedule(options_of(**options), order_of(**options).steps_per_epoch)


@pytest.mark.parametrize(
    ("options", "num_steps"),
    [
        ({"max_steps": 7}, 7),
        ({"num_train_epochs": 1, "per_device_train_batch_size": 8}, 13),
        ({"num_train_epochs": 0.5, "per_device_train_batch_size": 8}, 7),
        (
            {
                "num_train_epochs": 2,
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 2,
            },
            14,
        ),
    ],
)
def test_number_of_steps(options: dict[str, object], num_steps: int) -> None:
    assert make(**options).num_steps == num_steps


@pytest.mark.parametrize(
    ("max_steps", "eval_steps", "expected"),
    [
        (60, 0.2, (12, 24, 36, 48, 60)),
        (7, 0.2, (2, 3, 5, 6, 7)),
        (3, 0.2, (1, 2, 3)),
        (10, 0.3, (3, 6, 9, 10)),
        (10, 4, (4, 8, 10)),
        (10, 5, (5, 10)),
        (10, 50, (10,)),
    ],
)
def test_the_last_step_always_validates_and_once(
    max_steps: int, eval_steps: float, expected: tuple[int, ...]
) -> None:
    assert make(max_steps=max_steps, eval_steps=eval_steps).validation_steps == expected


@pytest.mark.parametrize("num_steps", range(5, 40))
def test_a_fraction_gives_every_trial_as_many_validations(num_steps: int) -> None:
    assert len(make(max_steps=num_steps, eval_steps=0.2).validation_steps) == 5


def test_an_epoch_takes_every_example_once_in_a_new_order() -> None:
    order = order_of(10, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    epochs = []
    for first in (1, 4):
        steps = [order.micro_batches(step) for step in range(first, first + 3)]
        assert [[len(rows) for rows in step] for step in steps] == [[2, 2], [2, 2], [2]]
        epochs.append([row for step in steps for rows in step for row in rows])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_the_order_depends_on_the_seed() -> None:
    assert order_of(seed=1).micro_batches(1) == order_of(seed=1).micro_batches(1)
    assert order_of(seed=1).micro_batches(1) != order_of(seed=2).micro_batches(1)
