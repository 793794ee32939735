"""Shared passes where memory ends, and the memory of trials that leave."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.trainers.test_lora_pack import EIGHT, ROUNDS, A, Options, Told, no_pass_fails, pack
from tests.trainers.test_lora_trainer import Run
from trainers.lora.pack.adapted_layer import AdaptedLayer
from trainers.lora.pack.packed_pass import PackedPass, TrainPart
from trainers.lora.pack.stacks import Stacks

__all__ = ["no_pass_fails"]


@pytest.fixture(scope="module")
def alone(fixed: Options) -> Told:
    told = {}
    for trial in EIGHT:
        run = pack(fixed, trial)
        run.advance(ROUNDS)
        told[trial] = run.told(trial)
    return told


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
    run = pack(fixed, *EIGHT)
    run.advance(ROUNDS)
    assert {trial: run.told(trial) for trial in EIGHT} == alone
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
    empty_like = torch.empty_like
    failed: list[int] = []

    def scarce(tensor: Tensor, **arguments: object) -> Tensor:
        if isinstance(tensor, torch.nn.Parameter) and not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("no room")
        return empty_like(tensor, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "empty_like", scarce)
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
    holding = {
        layer.name.rpartition(".")[2] for layer in stacks._layers.values() if 16 in layer._weights
    }
    assert holding == {"q_proj"}
