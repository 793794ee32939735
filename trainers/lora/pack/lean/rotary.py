"""Rotary positions: keep only the angles, which all layers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAME = "apply_rotary_pos_emb"
"""Under which the attention of transformers' models finds this."""

Rotate = Callable[..., tuple[Tensor, Tensor]]


def rotating(own: Rotate) -> Rotate:
    """Return what may take the place of a model's own function.

    Args:
        own: For what this does not do, such as angles for a part of each head.
    """

    def rotate(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        if not all(_suits(states, cos, sin) for states in (q, k)):
            return own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin)

    return rotate


def _suits(states: Tensor, cos: Tensor, sin: Tensor) -> bool:
    return states.dtype == cos.dtype == sin.dtype and states.shape[-1] == cos.shape[-1]


class _Rotary(torch.autograd.Function):
    """x cos + (-x2, x1) sin, where x1 and x2 are the halves of x.

    Source: RoFormer, https://arxiv.org/abs/2104.09864, equation 34, with its pairs as halves.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        turned = x * cos
        (one, two), (of_one, of_two), (sin_one, sin_two) = _halves(x, turned, sin)
        of_one.sub_(two * sin_one)
        of_two.add_(one * sin_two)
        return turned

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        back = gradients[0] * cos
        (one, two), (of_one, of_two), (sin_one, sin_two) = _halves(gradients[0], back, sin)
        of_one.add_(two * sin_two)
        of_two.sub_(one * sin_one)
        return back, None, None


def _halves(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return [tensor.chunk(2, -1) for tensor in tensors]
