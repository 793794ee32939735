"""Root mean square norms: keep their input, and a number for each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainers.lora.pack.lean.anew import Anew


def normed(x: Tensor, weight: Tensor, epsilon: float, is_kept: bool = False) -> Tensor:
    """Return x / sqrt(mean(x^2) + epsilon) times a frozen weight: in x's type.

    Source: Root Mean Square Layer Normalization, https://arxiv.org/abs/1910.07467, equation 4.

    Args:
        x: Shape (..., size).
        weight: Shape (size,), of x's type or wider.
        epsilon: Keeps the root from zero.
        is_kept: Whether the layers behind keep what they need of it.
    """
    output: Tensor
    output, rate = _Norm.apply(x, weight, epsilon)
    if output.requires_grad and not is_kept:
        kept = x.detach()
        Anew(output, lambda: _scaled(kept.float(), rate, weight).to(kept.dtype))
    return output


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        wide = x.float()
        rate = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, rate)
        ctx.mark_non_differentiable(rate)
        ctx.set_materialize_grads(False)
        return _scaled(wide, rate, weight).to(x.dtype), rate

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rate = ctx.saved_tensors
        wide, gradient = x.float(), (gradients[0] * weight).float()
        # d rate / dx = -x rate^3 / size
        slope = (gradient * wide).sum(-1, keepdim=True).mul_(rate.pow(3)).div_(-x.shape[-1])
        return gradient.mul_(rate).add_(wide * slope).to(x.dtype), None, None


def _scaled(wide: Tensor, rate: Tensor, weight: Tensor) -> Tensor:
    return (wide * rate).to(weight.dtype).mul_(weight)
