"""Lean layers compute what the model's own do, keep less, and leave the model as it was."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

from tests.trainers.test_lora_pack_models import (
    GEMMA,
    GROUPED,
    SHARING,
    backward,
    make_trainer,
    save,
)
from trainers.lora.pack.lean.anew import Anew
from trainers.lora.pack.lean.layers import LeanLayers

LEAN: dict[str, tuple[int, int, int]] = {
    "llama": (5, 2, 2),
    "qwen2": (5, 2, 2),
    "qwen3": (9, 2, 2),
    "gemma": (5, 2, 2),
    "gemma2": (9, 2, 2),
    "gemma3": (13, 2, 2),
    "mistral": (5, 2, 2),
    "mistral-eager": (5, 2, 2),
    "phi": (0, 0, 2),  # layer norms, and a plain feed-forward
    "phi3": (5, 0, 2),  # gate and up are one layer
    "gpt_neox": (0, 0, 2),
    "granite": (5, 2, 2),
    "cohere": (0, 2, 0),  # layer norms, and positions whose pairs are neighbours
    "gpt2-quiet": (0, 0, 0),
}
"""Of each architecture its norms, gated layers and attentions that have a lean form."""


def make(kind: str, options: dict[str, object], dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{**options, "vocab_size": 300})
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        for parameter in model.parameters():  # also of norms, which begin as ones or zeros
            torch.nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(False)


def forth_and_back(model: Any) -> tuple[Tensor, Tensor]:
    """Return the logits of two rows, and a gradient of their embeddings."""
    ids = torch.arange(2 * 40).view(2, 40)
    embeddings = model.get_input_embeddings()(ids).requires_grad_()
    logits = model(inputs_embeds=embeddings, use_cache=False).logits
    (gradient,) = torch.autograd.grad(logits.float().logsumexp(-1).sum(), embeddings)
    return logits, gradient


def places(lean: LeanLayers) -> tuple[int, int, int]:
    kinds = Counter(type(module).__name__ for module, _ in lean._forwards)
    ends = ("Norm", "MLP", "Attention")
    assert all(kind.endswith(ends) for kind in kinds)
    norms, gates, attentions = (sum(n for k, n in kinds.items() if k.endswith(e)) for e in ends)
    return norms, gates, attentions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SHARING)
def test_lean_layers_give_the_bits_of_the_models_own_and_their_gradients(
    name: str, dtype: torch.dtype
) -> None:
    model = make(*SHARING[name], dtype)
    lean = LeanLayers(model)
    assert places(lean) == LEAN[name]
    logits, gradient = forth_and_back(model)
    with lean.in_place():
        lean_logits, lean_gradient = forth_and_back(model)
    assert lean_logits.equal(logits)
    assert gradient.norm() > 0
    error = (lean_gradient - gradient).norm() / gradient.norm()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_a_pass_keeps_two_thirds_of_what_the_models_own_layers_keep(
    tmp_path: Path, model_folder: Path, train_file: Path
) -> None:
    save("llama", {**GROUPED, "intermediate_size": 192}, tmp_path / "model", model_folder)
    trainer = make_trainer("llama", tmp_path / "model", train_file)
    lean = trainer._engine._passes._pack._lean
    weights = {of.data_ptr() for of in trainer._engine._base.model.parameters()}
    kept = []
    for forwards in (lean._forwards, []):
        lean._forwards = forwards
        with kept_storages() as storages:
            backward(trainer, 0)
        kept.append(sum(of.nbytes() for place, of in storages.items() if place not in weights))
    assert 0 < kept[0] <= kept[1] * 0.68


def test_what_a_pass_keeps_to_make_more_of_goes_with_its_way_back(
    tmp_path: Path, model_folder: Path, train_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Anew] = weakref.WeakSet()
    begin = Anew.__init__

    def noted(anew: Anew, *arguments: Any) -> None:
        begin(anew, *arguments)
        alive.add(anew)

    monkeypatch.setattr(Anew, "__init__", noted)
    save("llama", GROUPED, tmp_path / "model", model_folder)
    trainer = make_trainer("llama", tmp_path / "model", train_file)
    peak = 0
    taken = Anew.take

    def counted(anew: Anew) -> Tensor:
        nonlocal peak
        peak = max(peak, sum(of._made is not None for of in alive))
        return taken(anew)

    monkeypatch.setattr(Anew, "take", counted)
    backward(trainer, 0)
    assert peak == 1, "one tensor at a time is made again"
    gc.collect()
    assert not alive


def test_a_tensor_is_made_once_for_all_its_users_and_goes_with_the_last() -> None:
    made: list[Tensor] = []
    tensor = torch.ones(3)

    def make() -> Tensor:
        made.append(tensor.clone())
        return made[-1]

    anew = Anew(tensor, make)
    users = [Anew.of(tensor), Anew.of(tensor)]
    assert users == [anew, anew]
    assert anew.take() is anew.take()
    assert len(made) == 1
    assert anew._made is None
    assert anew._make is None


def test_a_tensor_that_has_changed_or_is_made_of_another_is_kept() -> None:
    tensor = torch.ones(3)
    Anew(tensor, tensor.clone)
    assert Anew.of(tensor.view(3, 1)) is None
    assert Anew.of(tensor * 1) is None
    tensor.mul_(2)
    assert Anew.of(tensor) is None


@contextmanager
def kept_storages() -> Iterator[dict[int, torch.UntypedStorage]]:
    """Yield what tensors are kept for a way back, by place."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages


def test_the_model_is_as_it_was_after_a_pass_also_after_one_that_fails() -> None:
    model = make(*SHARING["llama"])
    lean = LeanLayers(model)
    with pytest.raises(RuntimeError), lean.in_place():
        model(input_ids=torch.zeros(1, 3))  # no whole numbers
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_forward_that_somebody_put_in_place_stays() -> None:
    model = make(*SHARING["llama"])
    norm = model.model.norm
    norm.forward = lambda x: x * 2
    lean = LeanLayers(model)
    assert places(lean) == (4, 2, 2)
    with lean.in_place():
        assert norm(torch.ones(1)) == 2


def test_checkpointed_layers_keep_no_more_for_being_lean() -> None:
    model = make(*SHARING["llama"])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    lean = LeanLayers(model.train())
    assert places(lean) == (5, 0, 2)
    logits, gradient = forth_and_back(model)
    with lean.in_place():
        lean_logits, lean_gradient = forth_and_back(model)
    assert lean_logits.equal(logits)
    torch.testing.assert_close(lean_gradient, gradient)


def test_a_norm_whose_weights_are_wider_than_its_input_is_computed_by_its_own() -> None:
    model = make(*SHARING["llama"], dtype=torch.bfloat16)
    lean = LeanLayers(model)
    norm = model.model.norm.float()
    x = torch.ones(3, 64, dtype=torch.bfloat16)
    own = norm(x)
    assert own.dtype == torch.float32
    with lean.in_place():
        assert norm(x).equal(own)


@pytest.mark.parametrize("act", ["relu", "quick_gelu", "silu", "gelu", "gelu_pytorch_tanh"])
def test_gated_layers_of_an_unknown_function_stay(act: str) -> None:
    model = make("llama", {**GROUPED, "hidden_act": act})
    is_known = act not in ("relu", "quick_gelu")
    assert places(LeanLayers(model))[1] == (2 if is_known else 0)


class Picky(torch.nn.Module):
    """Looks like a norm, and is called in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(64), requires_grad=False)
        self.eps = 1e-6

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate * self.weight


def test_a_part_that_cannot_be_tried_stays() -> None:
    model = make(*SHARING["llama"])
    model.extra = Picky()
    assert places(LeanLayers(model)) == (5, 2, 2)


def test_positions_on_a_part_of_each_head_are_computed_by_the_models_own() -> None:
    model = make("phi", {**SHARING["phi"][1], "partial_rotary_factor": 0.5})
    lean = LeanLayers(model)
    logits, gradient = forth_and_back(model)
    with lean.in_place():
        lean_logits, lean_gradient = forth_and_back(model)
    assert lean_logits.equal(logits)
    torch.testing.assert_close(lean_gradient, gradient)


def test_a_head_size_that_no_vector_divides_gives_the_same_bits() -> None:
    model = make("gemma", {**GEMMA, "head_dim": 10, "intermediate_size": 91})
    lean = LeanLayers(model)
    logits, _ = forth_and_back(model)
    with lean.in_place():
        assert forth_and_back(model)[0].equal(logits)
