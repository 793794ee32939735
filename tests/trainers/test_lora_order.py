"""The order of the training examples: pure in seed and step, and by length where asked for."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.trainers.test_lora_data import load
from trainers.lora.data.order import DataOrder
from trainers.lora.options import LoraOptions

LENGTHS = random.Random(0).sample(range(1000), 203)


def order(**options: object) -> DataOrder:
    given = {"model_name_or_path": "m", "train_file": "t.jsonl", "val_size": 1, **options}
    given.setdefault("per_device_train_batch_size", 3)
    given.setdefault("gradient_accumulation_steps", 2)
    return DataOrder(LoraOptions.model_validate(given), len(LENGTHS), LENGTHS)


def epoch(data_order: DataOrder, number: int) -> list[int]:
    steps = range(1, data_order.steps_per_epoch + 1)
    first = number * data_order.steps_per_epoch
    return [i for step in steps for rows in data_order.micro_batches(first + step) for i in rows]


STRATEGIES = ["random", "sequential", "group_by_length"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_epoch_has_every_example_once(strategy: str) -> None:
    data_order = order(train_sampling_strategy=strategy)
    assert all(sorted(epoch(data_order, n)) == list(range(203)) for n in (0, 1, 2))
    changes = epoch(data_order, 0) != epoch(data_order, 1)
    assert changes == (strategy != "sequential")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_has_the_same_examples_whatever_was_asked_before(strategy: str) -> None:
    straight = order(train_sampling_strategy=strategy)
    expected = {step: straight.micro_batches(step) for step in range(1, 80)}
    shuffled = random.Random(1).sample(sorted(expected), len(expected))
    other = order(train_sampling_strategy=strategy)
    assert all(other.micro_batches(step) == expected[step] for step in shuffled)
    if strategy != "sequential":
        assert order(train_sampling_strategy=strategy, seed=1).micro_batches(1) != expected[1]


def test_in_order_is_the_order_of_the_file() -> None:
    assert epoch(order(train_sampling_strategy="sequential"), 3) == list(range(203))


def test_grouping_is_that_of_transformers() -> None:
    from transformers.trainer_pt_utils import LengthGroupedSampler

    from trainers.lora.seeds import derive_seed

    for number in (0, 1):
        generator = torch.Generator().manual_seed(derive_seed(42, "order", number))
        sampler = LengthGroupedSampler(6, lengths=LENGTHS, generator=generator)
        assert epoch(order(train_sampling_strategy="group_by_length"), number) == list(sampler)


def test_grouping_spares_padding() -> None:
    def padded(strategy: str) -> int:
        data_order = order(train_sampling_strategy=strategy)
        steps = range(1, data_order.steps_per_epoch + 1)
        return sum(
            max(LENGTHS[i] for i in rows) * len(rows)
            for step in steps
            for rows in data_order.micro_batches(step)
        )

    assert padded("group_by_length") < 0.8 * padded("random")


def test_a_trial_is_told_the_lengths(tokenizer: Any, fixed: dict[str, object]) -> None:
    dataset = load(tokenizer, fixed)
    assert dataset.train_lengths == tuple(len(example.input_ids) for example in dataset.train)
    batch = dataset.train_batch([0, 1])
    assert batch.attention_mask.sum(1).tolist() == list(dataset.train_lengths[:2])
    assert dataset.where([1, 0]) == [dataset.train[1].where, dataset.train[0].where]
    assert dataset.train[0].where.startswith("train.jsonl:")
