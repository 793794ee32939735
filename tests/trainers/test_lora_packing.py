"""Packing: examples of one row see nothing of each other, and none is lost."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.test_lora_data import load
from trainers.lora import LoraTrainer
from trainers.lora.data.dataset import Batch, Dataset
from trainers.lora.data.encoding import IGNORE_INDEX, Example
from trainers.lora.data.packing import best_fit, check_keeps_apart, join, pack

Options = dict[str, object]


def example(*ids: int, prompt: int = 0, where: str = "x:1") -> Example:
    input_ids = torch.tensor(ids, dtype=torch.int32)
    labels = input_ids.clone()
    labels[:prompt] = IGNORE_INDEX
    return Example(input_ids, labels, False, 0, where, prompt)


EXAMPLES = [
    example(*range(5, 25), prompt=7, where="a:1"),
    example(30, where="a:2"),  # one token: nothing to learn
    example(*range(40, 59), where="a:3"),  # its first token would be a target, if it followed on
    example(*range(60, 80), prompt=3, where="b:1"),
]


def test_bins_hold_all_items_and_never_too_much() -> None:
    draw = random.Random(0)
    for _ in range(50):
        lengths = [draw.randint(1, 64) for _ in range(draw.randint(1, 80))]
        bins = best_fit(lengths, 64, seed=draw.randint(0, 9))
        assert Counter(item for row in bins for item in row) == Counter(range(len(lengths)))
        filled = [sum(lengths[item] for item in row) for row in bins]
        assert max(filled) <= 64
        # Best fit leaves at most one bin that another's smallest item would fit into by half.
        assert sum(total <= 32 for total in filled) <= 1


def test_the_rows_depend_on_the_seed_only() -> None:
    lengths = [3, 5, 3, 5, 2, 2, 8, 1] * 5
    assert best_fit(lengths, 10, 1) == best_fit(lengths, 10, 1)
    assert best_fit(lengths, 10, 1) != best_fit(lengths, 10, 2)


@pytest.fixture(params=["sdpa", "eager"])
def model(model_folder: Path, request: pytest.FixtureRequest) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.float32, attn_implementation=request.param
    )


def logits(model: Any, batch: Batch) -> torch.Tensor:
    mask = batch.attention_mask if batch.position_ids is None else None
    result: torch.Tensor = model(
        input_ids=batch.input_ids,
        attention_mask=mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).logits
    return result


def loss_and_gradients(model: Any, batch: Batch) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(
        logits(model, batch).flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE_INDEX
    )
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("one_row", [False, True])
def test_a_packed_batch_has_the_unpacked_ones_loss_and_gradients(model: Any, one_row: bool) -> None:
    plain = Dataset(EXAMPLES, [], [], 0, 64).train_batch([0, 1, 2, 3])
    rows = [join(EXAMPLES[:3]), EXAMPLES[3]]
    packed = Dataset(rows, [], [], 0, 64, one_row=one_row).train_batch([0, 1])
    assert packed.input_ids.shape == ((1, 64) if one_row else (2, 64))
    assert packed.position_ids is not None
    assert (packed.num_tokens, packed.num_targets) == (plain.num_tokens, plain.num_targets)
    loss, gradients = loss_and_gradients(model, packed)
    expected_loss, expected = loss_and_gradients(model, plain)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_changed_example_changes_nothing_of_the_next(model: Any) -> None:
    other = example(*range(100, 120), prompt=7)
    with torch.no_grad():
        first, second = (
            logits(model, Dataset([join([one, EXAMPLES[3]])], [], [], 0, 64).train_batch([0]))
            for one in (EXAMPLES[0], other)
        )
    assert torch.equal(first[:, 20:40], second[:, 20:40])
    assert not torch.allclose(first[:, :20], second[:, :20])


def test_no_example_is_the_target_of_the_one_before() -> None:
    batch = Dataset([join([EXAMPLES[0], EXAMPLES[2]])], [], [], 0, 64).train_batch([0])
    assert batch.targets[0, 19] == IGNORE_INDEX
    assert batch.targets[0, 20] == 41
    assert batch.position_ids is not None
    assert batch.position_ids[0].tolist() == [*range(20), *range(19), *range(25)]


def test_a_model_that_lets_examples_see_each_other_is_refused(model: Any) -> None:
    check_keeps_apart(model, torch.device("cpu"))
    forward = model.forward

    def forgetful(position_ids: object = None, **given: object) -> Any:
        return forward(**given)

    model.forward = forgetful
    with pytest.raises(ValueError, match=r"see each other.*Leave packing out"):
        check_keeps_apart(model, torch.device("cpu"))

    def without_positions(input_ids: object, use_cache: bool) -> Any:
        return forward(input_ids=input_ids)

    model.forward = without_positions
    with pytest.raises(ValueError, match="does not take the positions"):
        check_keeps_apart(model, torch.device("cpu"))


def test_packing_keeps_every_example_and_its_place(tokenizer: Any, fixed: Options) -> None:
    plain, packed = load(tokenizer, fixed), load(tokenizer, fixed, packing=True)
    assert len(packed.train) < len(plain.train) == 20
    pieces = [place for row in packed.where(range(len(packed.train))) for place in row.split("+")]
    assert Counter(pieces) == Counter(plain.where(range(20)))
    assert [len(e.input_ids) for e in packed.train] == list(packed.train_lengths)
    assert sum(packed.train_lengths) == sum(plain.train_lengths)
    assert max(packed.train_lengths) <= 64
    assert packed.validation_sets == plain.validation_sets
    assert not any(e.lengths for e in packed.validation)
    assert packed.digest != plain.digest
    assert any("20 training examples are in" in note for note in packed.notes)
    assert load(tokenizer, fixed, packing=True).digest == packed.digest


PACKED: Options = {
    "packing": True,
    "max_length": 128,
    "learning_rate": 3e-3,
    "max_steps": 4,
    "eval_steps": 2,
    "lora_dropout": 0.1,
    "gradient_checkpointing": True,
    "per_device_train_batch_size": 2,
}


def losses(trainer: LoraTrainer, trial: int, steps: int) -> list[object]:
    found = [report for _ in range(steps) for report in trainer.advance()]
    reports = [report for report in found if report.trial == trial]
    lines = [line["loss"] for report in reports for line in report.step_lines]
    return [*lines, *(report.metrics["eval_loss"] for report in reports)]


def test_a_packed_trial_has_the_same_losses_resumed_and_beside_others(
    fixed: Options, tmp_path: Path
) -> None:
    options = {**fixed, **PACKED}
    trainer = LoraTrainer(options, "cpu")
    trainer.add(0, options)
    begun = losses(trainer, 0, 2)
    trainer.save(0, tmp_path)
    rest = losses(trainer, 0, 2)
    assert len(begun) == len(rest) == 3
    resumed = LoraTrainer(options, "cpu")
    resumed.add(1, {**options, "seed": 7, "per_device_train_batch_size": 1})
    resumed.add(0, options, tmp_path)
    assert losses(resumed, 0, 2) == rest
    resumed.remove(0)
    resumed.add(0, options)
    assert losses(resumed, 0, 2) == begun


def test_packing_twice_keeps_the_pieces() -> None:
    rows = pack(EXAMPLES, 64, 0)
    assert join(rows).lengths == tuple(length for row in rows for length in row.lengths)
