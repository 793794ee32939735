"""NEFTune: noise on a trial's embeddings while it trains.

Source: Noisy Embeddings Improve Instruction Finetuning, https://arxiv.org/abs/2310.05914
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Noise:
    """What is added to the embeddings of one trial's rows in one pass.

    Attributes:
        start: The trial's first token in the pass, whose rows lie end to end.
        widths: Of its rows.
        alpha: The noise's strength.
        seed: Of the draw.
    """

    start: int
    widths: tuple[int, ...]
    alpha: float
    seed: int


@contextlib.contextmanager
def noisy_embeddings(model: Any, noises: Sequence[Noise]) -> Iterator[None]:
    """Add noise to the embeddings of the pass within this.

    The formula is that of ``transformers.integrations.neftune``: uniform within
    alpha / sqrt(tokens of the row x dimensions). The draw is not: theirs is from the global
    generator, which neighbours share.

    Args:
        model: A model of transformers.
        noises: Of those trials that have some.
    """
    if not noises:
        yield
        return

    def add_noise(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        noisy = output.clone()
        tokens_TD = noisy.view(-1, noisy.shape[-1])
        for noise in noises:
            num_tokens = sum(noise.widths)
            part_TD = tokens_TD.narrow(0, noise.start, num_tokens)
            generator = torch.Generator(part_TD.device).manual_seed(noise.seed)
            drawn_TD = torch.empty_like(part_TD).uniform_(-1, 1, generator=generator)
            widths = torch.tensor(noise.widths, device=part_TD.device)
            limits = noise.alpha / (widths * part_TD.shape[-1]).sqrt()
            part_TD.add_(drawn_TD * limits.repeat_interleave(widths)[:, None])
        return noisy

    handle = model.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()
