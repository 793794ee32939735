"""Trials that share passes: each is as alone, to the bit, whatever its neighbours are and do."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainers.test_lora_pack_models import assert_same_bits, backward
from tests.trainers.test_lora_trainer import Run
from trainers.lora.pack.adapted_layer import AdaptedLayer
from trainers.lora.pack.packed_pass import EvalPart, PackedPass, TrainPart
from trainers.lora.pack.stacks import Stacks
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
    told = {}
    for trial, options in EIGHT.items():
        run = Run(fixed)
        run.add(trial, options)
        run.advance(ROUNDS)
        assert run.reports[trial][-1].end == ("diverged" if trial == 5 else "finished")
        told[trial] = run.told(trial)
    return told


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
        for stack in (*layer.weights(16), *layer.gradients(16)):
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
    passes = {"eval_first_pass_samples": 2, "per_device_eval_batch_size": 1, "val_size": 6}
    healthy = PackedPass.measure
    measured: list[list[int]] = []

    def counted(self: PackedPass, parts: Sequence[EvalPart]) -> object:
        measured.append([part.trial for part in parts])
        return healthy(self, parts)

    def run_with(*trials: int) -> Run:
        run = Run(fixed, **passes)
        for trial in trials:
            limit = {"max_loss": 100.0} if trial == 0 else {}
            run.add(trial, {**A, "seed": trial, **limit})
        run.advance(1)
        if 1 in trials:  # its training loss was fine
            for name, weight in run.trainer._engine._trials[1].parameters.items():
                weight.data.fill_(3.0 if "lora_B" in name else 1.0)
        return run

    expected = run_with(0)
    expected.advance(1)
    run = run_with(0, 1)
    monkeypatch.setattr(
        run.trainer._engine._trials[1], "max_loss", 1e9
    )  # of training; a validation has the trial's too
    monkeypatch.setattr(PackedPass, "measure", counted)
    engine = run.trainer._engine
    update = engine._trials[1].update

    def then_limited(*args: object) -> object:
        result = update(*args)  # type: ignore[arg-type]
        engine._trials[1].max_loss = 0.1
        return result

    monkeypatch.setattr(engine._trials[1], "update", then_limited)
    run.advance(1)
    assert run.reports[1][-1].end == "diverged"
    assert "on the first 2 examples" in str(run.reports[1][-1].message)
    assert run.told(0) == expected.told(0)
    assert measured == [[0, 1]] * 2 + [[0]] * 4


@pytest.mark.parametrize("limit", [33, 100, 200])
def test_a_pass_out_of_memory_is_made_in_parts_that_stay_small_and_changes_no_bit(
    fixed: Options, alone: Told, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    healthy = PackedPass.backward
    passes: list[tuple[int, int, bool]] = []

    def scarce(self: PackedPass, parts: Sequence[TrainPart]) -> list[float]:
        width = sum(part.rows.width for part in parts)
        passes.append((width, len(parts), width > limit and len(parts) > 1))
        if passes[-1][-1]:
            raise torch.OutOfMemoryError("no room")
        return healthy(self, parts)

    monkeypatch.setattr(PackedPass, "backward", scarce)
    trials = (0, 1, 2, 4, 6)
    run = pack(fixed, *trials)
    run.advance(ROUNDS)
    assert {trial: run.told(trial) for trial in trials} == {t: alone[t] for t in trials}
    failed = [index for index, (_, _, full) in enumerate(passes) if full]
    assert 1 <= len(failed) <= 6
    if limit > 33:
        assert any(count > 1 for _, count, _ in passes[failed[-1] :])


def test_gradients_are_not_added_twice_where_memory_ends_as_they_are_taken(
    fixed: Options, alone: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pack(fixed, 1)
    run.advance(1)  # 1 is within a step
    run.add(4, EIGHT[4])
    zeros_like = torch.zeros_like
    failed: list[int] = []

    def scarce(tensor: Tensor, **arguments: object) -> Tensor:
        if isinstance(tensor, torch.nn.Parameter) and not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("no room")
        return zeros_like(tensor, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "zeros_like", scarce)
    run.advance(ROUNDS)
    assert failed
    assert run.told(1) == alone[1]
    assert run.told(4) == alone[4]


def test_one_that_finds_no_memory_for_its_stacks_leaves_nothing_behind(
    fixed: Options, alone: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pack(fixed, 2)
    run.advance(1)
    healthy, calls = AdaptedLayer.enlarge, []

    def scarce(self: AdaptedLayer, *args: object) -> None:
        calls.append(self)
        if len(calls) == 9:
            raise torch.OutOfMemoryError("no room")
        healthy(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(AdaptedLayer, "enlarge", scarce)
    with pytest.raises(Exception, match="no room"):
        run.add(7, {**A, "lora_r": 40})
    monkeypatch.undo()
    stacks = run.trainer._engine._weights.stacks
    assert stacks is not None
    assert all(layer.present == {2} for layer in stacks._layers.values())
    assert all(list(layer._weights) == [16] for layer in stacks._layers.values())
    run.add(7, EIGHT[7])  # on other layers
    run.advance(ROUNDS)
    assert run.told(2) == alone[2]
    assert run.told(7) == alone[7]


def tensors_of(stacks: Stacks) -> list[Tensor]:
    return [
        stack
        for layer in stacks._layers.values()
        for pairs in (layer._weights, layer._gradients)
        for pair in pairs.values()
        for stack in pair
    ]


def test_a_trial_that_leaves_takes_its_memory_with_it(fixed: Options) -> None:
    def size(of: Stacks) -> int:
        return sum(tensor.numel() for tensor in tensors_of(of))

    run = pack(fixed, 0)
    run.advance(1)
    stacks = run.trainer._engine._weights.stacks
    assert stacks is not None
    before = size(stacks)
    for trial in (6, 7, 2, 4):
        run.add(trial, EIGHT[trial])
    run.add(8, {**A, "lora_r": 3, "target_modules": "q_proj"})  # behind 2, on one layer
    run.advance(1)
    leaving = [weakref.ref(tensor) for tensor in tensors_of(stacks)]
    leaving += [
        weakref.ref(weight)
        for trial in (6, 7, 2, 4)
        for weight in run.trainer._engine._trials[trial].parameters.values()
    ]
    for trial in (6, 7, 2, 4):
        run.trainer.remove(trial)
    run.advance(1)
    kept = {id(tensor) for tensor in tensors_of(stacks)}
    gc.collect()
    assert [r for r in leaving if (tensor := r()) is not None and id(tensor) not in kept] == []
    assert {layer.name.rpartition(".")[2] for layer in stacks._layers.values()} == {"q_proj"}
    run.trainer.remove(8)
    run.advance(1)
    assert size(stacks) == before
    run.trainer.remove(0)
    assert tensors_of(stacks) == []
    assert all("forward" not in vars(m) for m in run.trainer._engine._base.model.modules())


def test_a_layer_keeps_no_places_that_only_other_layers_trials_need(fixed: Options) -> None:
    run = Run(fixed)
    run.add(0, {**A, "lora_r": 8, "target_modules": "all-linear"})
    run.add(1, {**A, "lora_r": 8, "target_modules": "q_proj"})
    run.add(2, {**A, "lora_r": 32, "target_modules": "all-linear"})
    run.advance(1)
    run.trainer.remove(0)
    stacks = run.trainer._engine._weights.stacks
    assert stacks is not None
    holding = {layer.name.rpartition(".")[2] for layer in stacks._layers.values() if 16 in layer._weights}
    assert holding == {"q_proj"}


