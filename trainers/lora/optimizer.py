"""The optimizer of a trial, and its state as tensors by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainers.lora.options import LoraOptions


def make_optimizer(
    options: LoraOptions, parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """Return a trial's optimizer over its weights, in their order."""
    return torch.optim.AdamW(
        parameters.values(),
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        weight_decay=options.weight_decay,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step be done with this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def state_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return the optimizer's state as ``<weight>/<quantity>``; empty before the first step."""
    return {
        f"{name}/{quantity}": value
        for name, parameter in parameters.items()
        for quantity, value in optimizer.state[parameter].items()
    }


def load_state_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Bring an optimizer at its beginning to a saved state."""
    numbers = {name: number for number, name in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, quantity = key.rpartition("/")
        state.setdefault(numbers[name], {})[quantity] = value
    # The groups hold options only; the learning rate is set before each step.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
