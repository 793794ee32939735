"""Root mean square norms: keep their input, and a number for each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Norm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon) times a frozen weight: in x's type, or wider if the weight is.

    Source: Root Mean Square Layer Normalization, https://arxiv.org/abs/1910.07467, equation 4.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        rate = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, rate)
        return (wide * rate).to(weight.dtype).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rate = ctx.saved_tensors
        wide, gradient = x.float(), (gradients[0] * weight).float()
        # d rate / dx = -x rate^3 / size
        slope = (gradient * wide).sum(-1, keepdim=True).mul_(rate.pow(3)).div_(-x.shape[-1])
        return gradient.mul_(rate).add_(wide * slope).to(x.dtype), None, None
