"""NEFTune: noise on a trial's embeddings while it trains.

Source: Noisy Embeddings Improve Instruction Finetuning, https://arxiv.org/abs/2310.05914
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def noisy_embeddings(model: Any, alpha: float | None, seed: int) -> Iterator[None]:
    """Add noise to the embeddings of the passes within this.

    The formula is that of ``transformers.integrations.neftune``: uniform within
    alpha / sqrt(tokens x dimensions). The draw is not: theirs is from the global generator, which
    dropout shares.

    Args:
        model: A model of transformers.
        alpha: The noise's strength; None or 0 adds none.
        seed: Of this pass's noise.
    """
    if not alpha:
        yield
        return

    def add_noise(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        generator = torch.Generator(output.device).manual_seed(seed)
        limit = alpha / math.sqrt(output.size(1) * output.size(2))
        noise = torch.zeros_like(output).uniform_(-limit, limit, generator=generator)
        return output + noise

    handle = model.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()
