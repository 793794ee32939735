"""Trials that share passes: each is as alone, to the bit, whatever its neighbours are and do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers.test_lora_pack_models import assert_same_bits, backward
from tests.trainers.test_lora_trainer import Run, runs_alone
from trainers.lora.pack.loss import Head
from trainers.lora.pack.packed_pass import EvalPart, PackedPass
from trainers.lora.validation.validator import Validator

Options = dict[str, object]
Told = dict[int, list[tuple[object, ...]]]

A: Options = {"learning_rate": 1e-2, "max_steps": 4, "eval_steps": 2}
LATE_LAYER = r".*layers\.1\.mlp\.(up|gate)_proj"
EIGHT: dict[int, Options] = {
    0: {**A, "lora_r": 1, "target_modules": "q_proj", "max_grad_norm": 0.01},
    1: {**A, "lora_r": 8, "seed": 1, "lora_dropout": 0.3, "gradient_accumulation_steps": 3},
    2: {**A, "lora_r": 16, "seed": 2, "lora_alpha": 64, "optim": "lion_32bit"},
    3: {**A, "lora_r": 17, "seed": 3, "use_rslora": True, "target_modules": LATE_LAYER},
    4: {**A, "lora_r": 40, "seed": 4, "per_device_train_batch_size": 3, "neftune_noise_alpha": 9},
    5: {**A, "lora_r": 16, "seed": 5, "learning_rate": 1e30},
    6: {**A, "lora_r": 64, "seed": 6, "loraplus_lr_ratio": 16, "lr_scheduler_type": "cosine"},
    7: {**A, "lora_r": 128, "seed": 7, "optim": "adafactor", "target_modules": "v_proj,down_proj"},
}
for number, common in EIGHT.items():
    common.setdefault("per_device_train_batch_size", 2 if number % 2 else 1)

ROUNDS = 12
"""Of passes, after which each of these trials is done."""


@pytest.fixture(scope="module")
def alone(fixed: Options) -> Told:
    runs = runs_alone(fixed, EIGHT, ROUNDS)
    for trial, run in runs.items():
        assert run.reports[trial][-1].end == ("diverged" if trial == 5 else "finished")
    return {trial: run.told(trial) for trial, run in runs.items()}


@pytest.fixture(autouse=True)
def no_pass_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A pass that is done again by each trial alone would hide its mistake."""
    yield
    assert "each is done alone" not in caplog.text


def pack(fixed: Options, *trials: int, **options: object) -> Run:
    run = Run(fixed, **options)
    for trial in trials:
        run.add(trial, {**EIGHT[trial], **options})
    return run


def test_eight_different_trials_that_join_and_leave_are_each_as_alone(
    fixed: Options, alone: Told
) -> None:
    run = pack(fixed, 7, 0, 5)
    run.advance(2)
    assert run.reports[5][-1].end == "diverged"
    run.add(2, EIGHT[2])
    run.add(1, EIGHT[1])
    run.advance(2)
    run.trainer.remove(5)
    run.trainer.remove(2)
    run.reports[2].clear()
    for trial in (6, 3, 4, 2):  # 3 gets the stacks beside 6, 2 the place of 5
        run.add(trial, EIGHT[trial])
    run.advance(2)
    run.trainer.remove(7)  # the largest stacks go
    run.advance(ROUNDS)
    assert run.told(7) == alone[7][: len(run.told(7))] != []
    for trial in EIGHT.keys() - {7}:
        assert run.told(trial) == alone[trial], trial


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_eight_saved_and_resumed_in_another_order_and_company_are_each_as_alone(
    fixed: Options, alone: Told, tmp_path: Path, rounds: int
) -> None:
    run = pack(fixed, *EIGHT)
    run.advance(rounds)
    going_on = [t for t in EIGHT if not run.reports[t] or run.reports[t][-1].end is None]
    for trial in going_on:
        run.trainer.save(trial, tmp_path / str(trial))
    resumed = Run(fixed)
    resumed.add(90, {**EIGHT[4], "seed": 90, "lora_r": 8})
    for trial in reversed(going_on):
        resumed.add(trial, EIGHT[trial], tmp_path / str(trial))
        if trial == 4:
            resumed.advance(1)
            resumed.trainer.remove(90)
    resumed.advance(ROUNDS)
    assert (5 in going_on) == (rounds == 1)
    for trial in going_on:
        assert run.told(trial) + resumed.told(trial) == alone[trial], trial


def test_no_gradient_is_kept_beside_a_pass_nor_after_one_that_fails(
    fixed: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(fixed)
    for trial in range(2):
        run.add(trial, {**A, "seed": trial})
    engine = run.trainer._engine
    stacks = engine._weights.stacks
    assert stacks is not None

    def of_passes() -> int:
        return sum(len(layer._gradients) for layer in stacks._layers.values())

    found = []
    loss = Head.loss

    def noted(*arguments: Any) -> Any:
        own = [of.grad for trial in engine._trials.values() for of in trial.parameters.values()]
        found.append(of_passes() + sum(gradient is not None for gradient in own))
        return loss(*arguments)

    monkeypatch.setattr(Head, "loss", noted)
    run.advance(3)
    assert found == [0, 0, 0]
    assert of_passes() == 0

    def fails(*arguments: Any) -> None:
        raise RuntimeError("on its way back")

    last = next(iter(stacks._layers.values()))  # the first layer: the others have gone back by then
    monkeypatch.setattr(last, "go_back", fails)
    parts = [engine._passes._next_part(trial) for trial in engine._trials.values()]
    pack = engine._passes._pack
    assert pack is not None
    with pytest.raises(RuntimeError, match="its way back"):
        pack.backward(parts)
    assert of_passes() == 0


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e30])
def test_poisoned_weights_change_no_bit_of_neighbours_nor_of_who_takes_their_place(
    fixed: Options, poison: float
) -> None:
    run = Run(fixed)
    sizes: Options = {**A, "lora_dropout": 0.2}
    for trial, rank in ((0, 8), (1, 12), (2, 16)):
        run.add(trial, {**sizes, "lora_r": rank, "seed": trial})
    run.advance(2)
    engine = run.trainer._engine
    healthy = backward(run.trainer, 0, 2)
    stacks = engine._weights.stacks
    assert stacks is not None
    places = [stacks._entries[trial] for trial in range(3)]
    assert [(place.rank, place.slot) for place in places] == [(16, 0), (16, 1), (16, 2)]
    for weight in engine._trials[1].parameters.values():
        weight.data.fill_(poison)
    for layer in stacks._layers.values():  # also what pads the rank
        for stack in layer.weights(16):
            stack[1].fill_(poison)
    beside = backward(run.trainer, 0, 1, 2)
    assert not all(gradient.isfinite().all() for gradient in beside[1][1].values())
    for trial in (0, 2):
        assert_same_bits(beside[trial], healthy[trial])
    run.trainer.remove(1)
    run.add(3, {**sizes, "lora_r": 4, "seed": 3})
    assert stacks._entries[3].slot == 1
    fresh = Run(fixed)
    fresh.add(3, {**sizes, "lora_r": 4, "seed": 3})
    assert_same_bits(backward(run.trainer, 0, 3, 2)[3], backward(fresh.trainer, 3)[3])


def test_a_trial_drops_the_same_whoever_is_beside_it_and_whenever_it_joined(
    fixed: Options,
) -> None:
    own: Options = {**A, "lora_dropout": 0.5, "seed": 3}
    quiet: Options = {**A, "seed": 4, "target_modules": "q_proj,up_proj"}
    noisy: Options = {**A, "seed": 3, "lora_dropout": 0.5, "neftune_noise_alpha": 20.0}
    found = []
    for before, after in (([], []), ([quiet], [noisy]), ([noisy, noisy], []), ([], [quiet, own])):
        run = Run(fixed)
        for key, options in enumerate(before):
            run.add(key, options)
        run.add(50, own)
        for key, options in enumerate(after, start=60):
            run.add(key, options)
        run.advance(4)
        found.append(run.told(50))
        assert all(run.told(key) != run.told(50) for key in run.reports if key not in (50, 61))
        if 61 in run.reports:
            assert run.told(61) == run.told(50)
    assert found[1:] == found[:1] * 3


def test_accumulating_beside_one_that_does_not_and_removed_within_a_step(
    fixed: Options, alone: Told
) -> None:
    run = pack(fixed, 0, 1)
    run.advance(2)
    engine = run.trainer._engine
    assert (engine._trials[0].step, engine._trials[1].step) == (2, 0)
    run.trainer.remove(1)
    run.reports.pop(1)
    run.add(1, EIGHT[4])  # another trial takes its key
    run.advance(ROUNDS)
    assert run.told(1) == alone[4]
    assert run.told(0) == alone[0]


def test_a_validation_shares_its_passes_and_is_the_bits_of_each_alone(
    fixed: Options, alone: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = PackedPass.measure
    sizes: list[int] = []

    def counted(self: PackedPass, parts: Sequence[EvalPart]) -> object:
        sizes.append(len(parts))
        return healthy(self, parts)

    monkeypatch.setattr(PackedPass, "measure", counted)
    run = pack(fixed, 0, 2, 3, 6)
    run.advance(4)
    assert sizes == [4, 4]
    assert {trial: run.told(trial) for trial in run.reports} == {
        trial: alone[trial] for trial in run.reports
    }


def test_validations_that_fail_together_are_made_one_by_one(
    fixed: Options, alone: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[int] = []

    def broken(self: Validator, *args: object) -> None:
        failed.append(1)
        raise RuntimeError("together they fail")

    monkeypatch.setattr(Validator, "_measure_all", broken)
    run = pack(fixed, 0, 2)
    run.advance(4)
    assert failed == [1, 1]
    assert (run.told(0), run.told(2)) == (alone[0], alone[2])


def test_one_that_diverges_at_the_first_pass_of_a_shared_validation_spares_the_rest(
    fixed: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"eval_first_pass_samples": 2, "per_device_eval_batch_size": 1, "val_size": 6}
    healthy = PackedPass.measure
    measured: list[list[int]] = []

    def counted(self: PackedPass, parts: Sequence[EvalPart]) -> object:
        measured.append([part.trial for part in parts])
        return healthy(self, parts)

    def run_with(*trials: int) -> Run:
        run = Run(fixed, **sizes)
        for trial in trials:
            run.add(trial, {**A, "seed": trial})
        run.advance(1)
        return run

    alone = run_with(0)
    alone.advance(1)
    run = run_with(0, 1)
    diverging = run.trainer._engine._trials[1]
    update = diverging.update

    def update_and_spoil(*step: Any) -> object:
        result = update(*step)
        for weight in diverging.parameters.values():
            weight.data.fill_(torch.nan)
        return result

    monkeypatch.setattr(diverging, "update", update_and_spoil)
    monkeypatch.setattr(PackedPass, "measure", counted)
    run.advance(1)
    assert run.reports[1][-1].end == "diverged"
    assert "nan on the first 2 examples" in str(run.reports[1][-1].message)
    assert run.told(0) == alone.told(0)
    assert measured == [[0, 1]] * 2 + [[0]] * 4
