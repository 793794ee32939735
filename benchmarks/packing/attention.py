"""Attention of narrow rows in bfloat16: plain products against PyTorch's own kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.figures import Figure
from benchmarks.rounds import Contestant, measure_in_turn
from trainers.lora.pack.narrow_attention import attend_narrow

HEADS, KEY_HEADS, SIZE = 9, 3, 64
"""Of SmolLM2-135M."""

NUM_TOKENS = 1024
WIDTHS = (32, 64, 128, 256, 512, 1024)

_Attend = Callable[..., Tensor]


def attention_figures(repetitions: int) -> list[Figure]:
    """Return how many times as long PyTorch's kernel takes, forward and back, for each width."""
    figures = []
    for width in WIDTHS:
        states = _states(width)
        mask = torch.full((1, 1, width, width), -torch.inf, dtype=torch.bfloat16).triu(1)
        seconds = measure_in_turn(
            {
                "kernel": _timed(_kernel, states),
                "products": _timed(partial(attend_narrow, mask=mask, scaling=None), states),
            },
            repetitions,
        )
        ratios = zip(seconds["kernel"], seconds["products"], strict=True)
        name = f"rows of {width} tokens: PyTorch's attention / plain products"
        figures.append(Figure(name, tuple(kernel / products for kernel, products in ratios)))
    return figures


def _kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    output: Tensor = functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    return output.transpose(1, 2)


def _states(width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(
            NUM_TOKENS // width, width, heads, SIZE, generator=generator, dtype=torch.bfloat16
        )
        .transpose(1, 2)
        .requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]


def _timed(attend: _Attend, states: list[Tensor]) -> Contestant:
    def run() -> float:
        start = time.perf_counter()
        output = attend(*states)
        torch.autograd.grad(output, states, torch.ones_like(output))
        return time.perf_counter() - start

    return run
