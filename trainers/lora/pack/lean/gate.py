"""Gated layers, down(act(gate(x)) * up(x)): keep the outputs of gate and up, and no more.

What goes into ``down`` is needed going back, for the adapters there: it is computed anew then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional


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
    kept = _Kept(activation)
    product = _Product.apply(layer.gate_proj(x), layer.up_proj(x), kept)
    with saved_tensors_hooks(kept.pack_unless(product), kept.unpack):
        output: Tensor = layer.down_proj(product)
    return output


class _Kept:
    """What a gated layer keeps, and makes of it going back."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self.gate_and_up: tuple[Tensor, Tensor] | None = None
        self._active: Tensor | None = None

    def pack_unless(self, product: Tensor) -> Callable[[Tensor], Tensor | torch.Size]:
        """Return what keeps every tensor, but of this one only the shape."""
        place, count = product.data_ptr(), product.numel()

        def pack(tensor: Tensor) -> Tensor | torch.Size:
            is_product = tensor.data_ptr() == place and tensor.numel() == count
            return tensor.shape if is_product else tensor

        return pack

    def unpack(self, packed: Tensor | torch.Size) -> Tensor:
        """Return what was packed."""
        if isinstance(packed, Tensor):
            return packed
        assert self.gate_and_up is not None
        gate, up = self.gate_and_up
        self._active = self.activation.forward(gate)
        return (self._active * up).view(packed)

    def take_active(self, gate: Tensor) -> Tensor:
        """Return act(gate), which the way back through ``down`` has left here, or else anew."""
        active, self._active = self._active, None
        return self.activation.forward(gate) if active is None else active


class _Product(torch.autograd.Function):
    """act(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kept: _Kept) -> Tensor:
        kept.gate_and_up = gate, up
        ctx.save_for_backward(gate, up)
        ctx.kept = kept
        return kept.activation.forward(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (gate, up) = gradients, ctx.saved_tensors
        of_up = ctx.kept.take_active(gate).mul_(gradient)
        ctx.kept.gate_and_up = None  # autograd lets go of its own here, too: layer by layer
        return ctx.kept.activation.backward(gradient * up, gate), of_up, None


def is_gated(layer: nn.Module) -> bool:
    """Return whether a layer has the parts of a gated one."""
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    return all(callable(getattr(layer, name, None)) for name in parts)
