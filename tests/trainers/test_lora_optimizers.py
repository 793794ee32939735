"""Optimizers: those of transformers, saved without pickle, and resumed bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
import transformers
from pydantic import ValidationError
from torch import nn
from transformers.training_args import OptimizerNames

from tests.trainers.test_lora_trainer import Run, losses
from trainers.lora.model.weights import Parameters, undecayed_parameters
from trainers.lora.optimizer import (
    load_state,
    make_optimizer,
    set_learning_rate,
    state_tensors,
    state_values,
)
from trainers.lora.options import LoraOptions
from trainers.lora.options.optimization import (
    OPTIMIZER_ARGUMENTS,
    REFUSED_OPTIMIZERS,
    OptimizerName,
)

Options = dict[str, object]

NAMES = get_args(OptimizerName)
EIGHT_BIT = [name for name in NAMES if "8bit" in name]
ARGUMENTS: dict[str, str] = {
    "sgd": "momentum=0.9,nesterov=true",
    "rmsprop": "momentum=0.5,centered=true",
    "adagrad": "lr_decay=0.01",
    "ademamix": "t_alpha=20,t_beta3=20",
    "rmsprop_bnb_8bit": "alpha=0.9",
}


def options_of(**options: object) -> LoraOptions:
    base = {"model_name_or_path": "m", "train_file": "t.jsonl", "val_size": 1}
    return LoraOptions.model_validate({**base, "learning_rate": 1e-2, **options})


def weights_of(seed: int = 0) -> Parameters:
    """Return one weight that bitsandbytes keeps in 8 bits, and one that is too small for it."""
    generator = torch.Generator().manual_seed(seed)
    return Parameters(
        {
            "x.lora_A.weight": nn.Parameter(torch.randn(32, 160, generator=generator)),
            "x.lora_B.weight": nn.Parameter(torch.randn(24, 32, generator=generator)),
        }
    )


def train(optimizer: torch.optim.Optimizer, weights: Parameters, steps: Sequence[int]) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for weight in weights.values():
            weight.grad = torch.randn(weight.shape, generator=generator)
        set_learning_rate(optimizer, 1e-2 / step)
        optimizer.step()


def test_every_optimizer_of_transformers_is_offered_or_refused_with_a_reason() -> None:
    assert {name.value for name in OptimizerNames} == set(NAMES) | set(REFUSED_OPTIMIZERS)
    assert not set(NAMES) & set(REFUSED_OPTIMIZERS)


@pytest.mark.parametrize("name", sorted(REFUSED_OPTIMIZERS))
def test_a_refused_optimizer_says_why_and_what_there_is(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name}' is not supported: it .*Known: adamw_torch"):
        options_of(optim=name)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_goes_on_from_its_saved_state_bit_by_bit(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    options = options_of(optim=name, optim_args=ARGUMENTS.get(name), weight_decay=0.1)
    whole, first = weights_of(), weights_of()
    train(make_optimizer(options, whole), whole, range(1, 9))
    begun = make_optimizer(options, first)
    train(begun, first, range(1, 5))
    save_file(state_tensors(begun, first), tmp_path / "state.safetensors")

    resumed = Parameters({name: nn.Parameter(of.detach().clone()) for name, of in first.items()})
    again = make_optimizer(options, resumed)
    saved = load_file(tmp_path / "state.safetensors")
    load_state(again, resumed, saved, state_values(begun, first))
    train(again, resumed, range(5, 9))
    for key, weight in whole.items():
        assert torch.equal(weight, resumed[key]), key
        assert not torch.equal(weight, first[key]), key

    not_resumed = Parameters(
        {name: nn.Parameter(of.detach().clone()) for name, of in first.items()}
    )
    train(make_optimizer(options, not_resumed), not_resumed, range(5, 9))
    has_a_memory = options.optim != "sgd" or options.optim_args is not None
    if has_a_memory:
        assert not torch.equal(not_resumed["x.lora_A.weight"], whole["x.lora_A.weight"])


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", EIGHT_BIT)
def test_eight_bits_are_eight_bits_where_the_weight_is_large(name: str) -> None:
    weights = weights_of()
    optimizer = make_optimizer(options_of(optim=name), weights)
    train(optimizer, weights, [1])
    dtypes = {key: tensor.dtype for key, tensor in state_tensors(optimizer, weights).items()}
    assert dtypes["x.lora_A.weight/state1"] == torch.uint8
    assert dtypes["x.lora_B.weight/state1"] == torch.float32  # below bitsandbytes' 4096 numbers


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, one) for name, known in OPTIMIZER_ARGUMENTS.items() for one in known],
)
def test_an_argument_that_is_allowed_reaches_the_optimizer(name: str, argument: str) -> None:
    value = "true" if argument in ("nesterov", "centered") else "0.25"
    value = "7" if argument.startswith("t_") else value

    def asked(given: str | None) -> dict[str, object]:
        arguments = SimpleNamespace(
            optim=OptimizerNames(name),
            optim_args=given,
            learning_rate=0.1,
            adam_beta1=0.9,
            adam_beta2=0.99,
            adam_epsilon=1e-8,
        )
        _, kwargs = transformers.Trainer.get_optimizer_cls_and_kwargs(arguments)  # type: ignore[arg-type]
        return dict(kwargs)

    assert options_of(optim=name, optim_args=f"{argument}={value}").parsed_optim_args
    assert asked(f"{argument}={value}") != asked(None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"optim": "sgd", "optim_args": "momentun=0.9"},
            "sgd takes no 'momentun'. Known for it: mom",
        ),
        ({"optim_args": "momentum=0.9"}, "adamw_torch takes no 'momentum'. Known for it: none"),
        ({"optim": "sgd", "optim_args": "momentum=high"}, "momentum='high' is no number"),
        ({"optim": "sgd", "adam_beta1": 0.8}, "adam_beta1: 0.8 has no effect on optim: sgd"),
        ({"optim": "lion_8bit", "adam_epsilon": 1e-6}, "no effect on optim: lion_8bit"),
    ],
)
def test_arguments_without_effect_are_refused(options: Options, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        options_of(**options)


def test_arguments_may_be_a_mapping() -> None:
    options = options_of(optim="sgd", optim_args={"momentum": 0.9, "nesterov": True})
    assert options.optim_args == "momentum=0.9,nesterov=true"
    (group,) = make_optimizer(options, weights_of()).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.9, True)


def test_what_an_optimizer_does_not_take_is_said_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="optim: sgd with optim_args: nesterov=true"):
        make_optimizer(options_of(optim="sgd", optim_args="nesterov=true"), weights_of())


def test_lora_plus_groups_and_rates_are_pefts() -> None:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    model = get_peft_model(
        nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)),
        LoraConfig(r=2, target_modules=["0", "1"], use_dora=True),
    )
    named = {name: of for name, of in model.named_parameters() if of.requires_grad}
    expected = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=8)
    options = options_of(loraplus_lr_ratio=8)
    optimizer = make_optimizer(options, Parameters(named))
    set_learning_rate(optimizer, 1e-2)

    def rates(one: torch.optim.Optimizer) -> dict[int, float]:
        return {id(of): group["lr"] for group in one.param_groups for of in group["params"]}

    assert rates(optimizer) == rates(expected)
    assert set(rates(optimizer).values()) == {1e-2, 8e-2}


def test_weight_decay_leaves_out_what_transformers_leaves_out(model_folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    weights = Parameters(model.named_parameters())  # tied ones come once
    decayed = transformers.Trainer.get_decay_parameter_names(None, model)  # type: ignore[arg-type]
    decayed = [name for name in decayed if name in weights]
    ids = undecayed_parameters(model)
    weights.undecayed = frozenset(name for name, of in weights.items() if id(of) in ids)
    assert set(weights) - weights.undecayed == set(decayed)
    assert any("norm" in name for name in weights.undecayed)
    groups = make_optimizer(options_of(weight_decay=0.1), weights).param_groups
    by_decay = {group["weight_decay"]: {id(of) for of in group["params"]} for group in groups}
    assert by_decay == {0.1: {id(weights[name]) for name in decayed}, 0.0: ids}


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(
    "optim",
    ["adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "adafactor", "sgd", "rmsprop", "adagrad"],
)
def test_a_trial_goes_on_from_its_saved_state_bit_by_bit(
    fixed: Options, tmp_path: Path, optim: str
) -> None:
    options: Options = {
        "optim": optim,
        "optim_args": ARGUMENTS.get(optim),
        "learning_rate": 3e-3,
        "max_steps": 5,
        "eval_steps": 2,
        "lora_r": 64,  # 64 x 64 numbers are enough for 8 bits
        "loraplus_lr_ratio": 4,
        "weight_decay": 0.01,
        "target_modules": "q_proj,v_proj",
    }
    run = Run(fixed)
    run.add(0, options)
    run.advance(2)
    run.trainer.save(0, tmp_path / "saved")
    run.advance(3)
    resumed = Run(fixed)
    resumed.add(0, options, tmp_path / "saved")
    resumed.advance(3)
    assert run.told(0)[1:] == resumed.told(0)
    assert len(set(losses(run.reports[0]))) == 5
    if "8bit" in optim:
        state = run.trainer._engine._trials[0].optimizer.state.values()
        assert any(of["state1"].dtype == torch.uint8 for of in state)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {
        ".json",
        ".safetensors",
    }
