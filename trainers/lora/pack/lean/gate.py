"""Gated layers, down(act(gate(x)) * up(x)): keep the outputs of gate and up, and no more.

What goes into ``down`` is needed going back, for the adapters there: it is made anew then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.lora.pack.lean.anew import Anew


@dataclass(frozen=True)
class Activation:
    """A function of each element, and its way back.

    Attributes:
        forward: Of x.
        backward: Of the output's gradient and of x.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


ACTIVATIONS = (
    Activation(functional.silu, torch.ops.aten.silu_backward),
    *(
        Activation(
            partial(functional.gelu, approximate=kind),
            partial(torch.ops.aten.gelu_backward, approximate=kind),
        )
        for kind in ("none", "tanh")
    ),
)


def gated(layer: Any, activation: Activation, x: Tensor) -> Tensor:
    """Return the output of a gated layer.

    Args:
        layer: With ``gate_proj``, ``up_proj`` and ``down_proj``.
        activation: Its ``act_fn``.
        x: Its input.
    """
    gate, up = layer.gate_proj(x), layer.up_proj(x)
    active = _Active(activation)
    product = _Product.apply(gate, up, active)
    if product.requires_grad:
        Anew(product, partial(active.times, gate.detach(), up.detach()))
    output: Tensor = layer.down_proj(product)
    return output


class _Active:
    """act(gate), made once for the way back through ``down`` and through the product."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self._found: Tensor | None = None

    def times(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return the product."""
        self._found = self.activation.forward(gate)
        return self._found * up

    def take(self, gate: Tensor) -> Tensor:
        """Return act(gate), the caller's to change."""
        found, self._found = self._found, None
        return self.activation.forward(gate) if found is None else found


class _Product(torch.autograd.Function):
    """act(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, active: _Active) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.active = active
        return active.activation.forward(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (gate, up) = gradients, ctx.saved_tensors
        of_up = ctx.active.take(gate).mul_(gradient)
        return ctx.active.activation.backward(gradient * up, gate), of_up, None


def is_gated(layer: nn.Module) -> bool:
    """Return whether a layer has the parts of a gated one."""
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    return all(callable(getattr(layer, name, None)) for name in parts)
