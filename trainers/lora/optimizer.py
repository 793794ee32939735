"""The optimizer of a trial, and its state as tensors and plain values by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers.training_args import OptimizerNames

from trainers.lora.model.weights import Parameters
from trainers.lora.options import LoraOptions

Plain = bool | int | float | None
"""What an optimizer keeps beside tensors, such as a count of steps."""

_RATE_FACTOR = "rate_factor"
_ADAMW = ("adamw_torch", "adamw_torch_fused")


def make_optimizer(options: LoraOptions, parameters: Parameters) -> torch.optim.Optimizer:
    """Return a trial's optimizer over its weights: transformers' choice for ``optim``.

    Raises:
        ValueError: The optimizer does not take the options' arguments.
    """
    kind, given = _kind_of(options)
    try:
        optimizer = kind(_groups(options, parameters), **given)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"optim: {options.optim} with optim_args: {options.optim_args} cannot be made: {error}."
        ) from error
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def _kind_of(options: LoraOptions) -> tuple[type, dict[str, object]]:
    """Return the optimizer's class and its arguments."""
    if options.optim in _ADAMW and not options.optim_args:
        # As transformers, but without its Trainer, which takes a second to import. The fused kernel
        # is one call for all weights in place of ten for each.
        betas = (options.adam_beta1, options.adam_beta2)
        return torch.optim.AdamW, {"betas": betas, "eps": options.adam_epsilon, "fused": True}
    # What get_optimizer_cls_and_kwargs reads of TrainingArguments, whose own start looks for
    # devices and sets up accelerate.
    arguments = SimpleNamespace(
        optim=OptimizerNames(options.optim),
        optim_args=options.optim_args,
        learning_rate=options.learning_rate,
        adam_beta1=options.adam_beta1,
        adam_beta2=options.adam_beta2,
        adam_epsilon=options.adam_epsilon,
        weight_decay=options.weight_decay,
    )
    kind, given = transformers.Trainer.get_optimizer_cls_and_kwargs(cast(Any, arguments))
    # transformers 5.23 hands bitsandbytes' RMSprop the text of optim_args.
    return kind, {name: float(of) if isinstance(of, str) else of for name, of in given.items()}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step be done with this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_RATE_FACTOR]


def state_tensors(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """Return the tensors of the optimizer's state as ``<weight>/<quantity>``."""
    return {
        key: value.clone() if "/qmap" in key else value  # one table of bitsandbytes for all
        for key, value in _state(optimizer, parameters).items()
        if isinstance(value, Tensor)
    }


def state_values(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Plain]:
    """Return the rest of the optimizer's state, as plain as JSON."""
    values = {}
    for key, value in _state(optimizer, parameters).items():
        if not isinstance(value, Tensor):
            assert value is None or isinstance(value, bool | int | float), key
            values[key] = value
    return values


def load_state(
    optimizer: torch.optim.Optimizer,
    parameters: Parameters,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Plain],
) -> None:
    """Bring an optimizer at its beginning to a saved state.

    Raises:
        ValueError: The state is of other weights.
    """
    names = {id(weight): name for name, weight in parameters.items()}
    numbers: dict[str, int] = {}
    for group in optimizer.param_groups:
        for weight in group["params"]:
            numbers[names[id(weight)]] = len(numbers)
    state: dict[int, dict[str, Tensor | Plain]] = {}
    for key, value in {**tensors, **values}.items():
        name, _, quantity = key.rpartition("/")
        if name not in numbers:
            raise ValueError(
                f"the saved optimizer holds {name!r}, which this trial does not train."
            )
        state.setdefault(numbers[name], {})[quantity] = value
    # The groups hold options only; the learning rate is set before each step.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _groups(options: LoraOptions, parameters: Parameters) -> list[dict[str, object]]:
    """Return the weights in groups of one weight decay and one learning rate.

    LoRA+ groups as ``peft.optimizers.create_loraplus_optimizer`` does: the second factor, and what
    has one dimension, learn faster.
    """
    groups: dict[tuple[float, float], list[object]] = {}
    for name, weight in parameters.items():
        decay = 0.0 if name in parameters.undecayed else options.weight_decay
        factor = 1.0
        if options.loraplus_lr_ratio is not None and (".lora_B." in name or weight.ndim == 1):
            factor = options.loraplus_lr_ratio
        groups.setdefault((decay, factor), []).append(weight)
    return [
        {
            "params": weights,
            "weight_decay": decay,
            "lr": options.learning_rate * factor,
            _RATE_FACTOR: factor,
        }
        for (decay, factor), weights in groups.items()
    ]


def _state(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, object]:
    """Return all of the optimizer's state; that of most is empty before the first step."""
    return {
        f"{name}/{quantity}": value
        for name, parameter in parameters.items()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }
