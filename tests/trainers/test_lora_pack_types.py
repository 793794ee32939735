"""The packed pass in half precision and on quantized weights, with and without checkpointing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainers.test_lora_pack_models import Gradients, assert_same_bits, backward
from tests.trainers.test_lora_trainer import Run

Options = dict[str, object]

A: Options = {"learning_rate": 1e-2, "max_steps": 4, "eval_steps": 2, "lora_dropout": 0.2}
TRIALS: dict[int, Options] = {
    0: {**A, "lora_r": 8},
    1: {**A, "lora_r": 16, "seed": 1, "per_device_train_batch_size": 3},
    2: {**A, "lora_r": 12, "seed": 2, "target_modules": "q_proj,down_proj"},
    3: {**A, "lora_r": 40, "seed": 3, "lora_dropout": 0.0, "neftune_noise_alpha": 5.0},
}
FORMS: dict[str, Options] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "nf4": {"dtype": "bfloat16", "quantization_bit": 4},
    "nf4-float32": {"dtype": "float32", "quantization_bit": 4},
}


def pack(fixed: Options, form: str, **options: object) -> Run:
    run = Run({**fixed, **FORMS[form]}, **options)
    assert not [note for note in run.trainer._engine._notes if "take turns" in note]
    for trial, of_trial in TRIALS.items():
        run.add(trial, of_trial)
    return run


def is_near(one: tuple[float, Gradients], other: tuple[float, Gradients]) -> bool:
    """Within 1e-6 of each other, relative to the size of each gradient."""
    pairs = ((gradient, other[1][name]) for name, gradient in one[1].items())
    return one[0] == pytest.approx(other[0], rel=1e-6) and all(
        (gradient - like).norm() <= 1e-6 * like.norm() for gradient, like in pairs
    )


@pytest.mark.parametrize("form", FORMS)
def test_from_equal_state_a_packed_step_is_the_step_alone(fixed: Options, form: str) -> None:
    run = pack(fixed, form)
    for _ in range(3):
        together = backward(run.trainer, *TRIALS)
        assert len(run.trainer._engine._passes.num_tokens) == 1
        for trial in TRIALS:
            assert is_near(backward(run.trainer, trial)[trial], together[trial])
        pair = backward(run.trainer, 3, 1)
        assert is_near(pair[3], together[3])
        assert is_near(pair[1], together[1])
        run.advance(1)


@pytest.mark.parametrize("form", FORMS)
def test_checkpointed_layers_give_the_same_bits(fixed: Options, form: str) -> None:
    plain, checkpointed = (
        pack(fixed, form, gradient_checkpointing=checkpoints) for checkpoints in (False, True)
    )
    calls: list[int] = []
    layer = checkpointed.trainer._engine._base.model.get_input_embeddings()
    layer.register_forward_hook(lambda *_: calls.append(1))
    inner = checkpointed.trainer._engine._base.model.model.layers[0].self_attn
    inner.register_forward_hook(lambda *_: calls.append(2))
    for _ in range(2):
        expected = backward(plain.trainer, *TRIALS)
        calls.clear()
        found = backward(checkpointed.trainer, *TRIALS)
        assert sorted(calls) == [1, 2, 2], "the layer was computed again going back"
        for trial in TRIALS:
            assert_same_bits(found[trial], expected[trial])
        plain.advance(1)
        checkpointed.advance(1)
    plain.advance(2)
    checkpointed.advance(2)
    assert {t: plain.told(t) for t in TRIALS} == {t: checkpointed.told(t) for t in TRIALS}


@pytest.mark.parametrize("form", ["bfloat16", "float16", "nf4"])
def test_a_pack_saved_and_resumed_in_other_company_goes_on_with_the_same_losses(
    fixed: Options, form: str, tmp_path: Path
) -> None:
    run = pack(fixed, form)
    run.advance(2)
    run.trainer.save(1, tmp_path / "saved")
    before = len(run.told(1))
    run.advance(2)
    resumed = Run({**fixed, **FORMS[form]})
    resumed.add(3, TRIALS[3])
    resumed.advance(1)
    resumed.add(1, TRIALS[1], tmp_path / "saved")
    resumed.advance(2)
    assert len(run.told(1)) == before + 1
    last, again = run.reports[1][-1], resumed.reports[1][-1]
    assert again.end == last.end == "finished"
    assert again.metrics["eval_loss"] == pytest.approx(last.metrics["eval_loss"], rel=1e-5)
    for one, other in zip(again.step_lines, last.step_lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_a_float16_trial_that_overflows_changes_no_bit_of_a_neighbour(fixed: Options) -> None:
    run = pack(fixed, "float16")
    run.advance(1)
    healthy = backward(run.trainer, 0, 2)
    for name, weight in run.trainer._engine._trials[1].parameters.items():
        if "lora_B" in name:
            weight.data.fill_(6e4)
    beside = backward(run.trainer, 0, 1, 2)
    assert not all(bool(gradient.isfinite().all()) for gradient in beside[1][1].values())
    for trial in (0, 2):
        assert_same_bits(beside[trial], healthy[trial])
    assert torch.isfinite(torch.tensor(beside[0][0]))
