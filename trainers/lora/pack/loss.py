"""The loss, and the projection on the vocabulary, only at the tokens to be learned.

In chunks: the logits of all targets at once would be the largest tensor of a pass. Going forward,
each chunk's gradient is computed at once, so that no logits are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.lora.data.dataset import TOKEN_MULTIPLE, padded
from trainers.lora.data.encoding import IGNORE_INDEX

CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**25}
"""Logits of one chunk: 32 and 128 MiB in float32. A GPU reads the projection anew for each chunk, which
takes longer than a small one's products."""


@dataclass(frozen=True)
class Targets:
    """Where the targets of a pass are, each trial's padded to a multiple of TOKEN_MULTIPLE.

    So is the number of rows of the projection, on which its bits depend.

    Attributes:
        tokens: Of each target its token, shape (targets,).
        places: Of each target its row in the projection, shape (targets,).
        ids: Shape (targets,).
        counts: Of each trial its targets.
        num_rows: Rows of the projection.
    """

    tokens: Tensor
    places: Tensor
    ids: Tensor
    counts: tuple[int, ...]
    num_rows: int


def find_targets(targets: Tensor, widths: tuple[int, ...]) -> Targets:
    """Return where the targets of the trials are whose tokens lie end to end.

    Args:
        targets: Shape (tokens,): ids to be learned, else IGNORE_INDEX.
        widths: Of each trial its tokens.
    """
    is_target = targets != IGNORE_INDEX
    counts = tuple(int(part.sum()) for part in is_target.split(list(widths)))
    places, start = [], 0
    for count in counts:
        places.append(torch.arange(start, start + count))
        start += padded(count)
    (tokens,) = is_target.nonzero(as_tuple=True)
    return Targets(tokens, torch.cat(places).to(tokens.device), targets[tokens], counts, start)


@dataclass(frozen=True)
class Sums:
    """What the targets of one trial add up to.

    Attributes:
        loss: Nats.
        num_correct: Targets that have the highest probability.
    """

    loss: float
    num_correct: int


class Head:
    """A model's projection on its vocabulary, frozen."""

    def __init__(self, layer: nn.Linear, scale: float = 1.0, softcap: float | None = None) -> None:
        """Take a model's output layer.

        Args:
            layer: Its weights are not trained.
            scale: What its output is multiplied by.
            softcap: Logits stay within plus and minus this; None: they are not bounded.
        """
        self._layer = layer
        self._scale = scale
        self._softcap = softcap

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return logits, shape (N, vocabulary), in the model's type."""
        logits_NV: Tensor = functional.linear(hidden_ND, self._layer.weight, self._layer.bias)
        if self._scale != 1.0:
            logits_NV = logits_NV * self._scale
        if self._softcap is not None:
            logits_NV = torch.tanh(logits_NV / self._softcap) * self._softcap
        return logits_NV

    def back(self, gradient_NV: Tensor, logits_NV: Tensor, out_ND: Tensor) -> None:
        """Write the gradient of the hidden states, given that of their logits."""
        if self._softcap is not None:
            gradient_NV = gradient_NV * (1 - (logits_NV / self._softcap) ** 2)
        if self._scale != 1.0:
            gradient_NV = gradient_NV * self._scale
        torch.mm(gradient_NV, self._layer.weight, out=out_ND)

    def loss(self, hidden_TD: Tensor, targets: Targets, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return a number to go back from, and each target's loss.

        Args:
            hidden_TD: The model's last hidden states, shape (tokens, dimensions).
            targets: Of the pass.
            weights: What each target's loss counts, shape (targets,).

        Returns:
            The weighted sum of the losses, shape (), and the losses in nats, shape (targets,).
        """
        total, losses_N = _Loss.apply(hidden_TD, self, targets, weights)
        return total, losses_N

    @torch.no_grad()
    def sums(self, hidden_TD: Tensor, targets: Targets) -> list[Sums]:
        """Return what each trial's targets add up to."""
        losses = [torch.zeros(0, device=hidden_TD.device)]  # there may be no target at all
        hits = [targets.ids.new_zeros(0, dtype=torch.bool)]
        for hidden_ND, chunk in self.chunks(hidden_TD, targets):
            logits_NV = self.logits(hidden_ND)
            logs_NV = functional.log_softmax(logits_NV, dim=-1, dtype=torch.float32)
            at_targets = logs_NV[chunk.rows, chunk.ids]
            losses.append(-at_targets)
            hits.append(logits_NV[chunk.rows].argmax(-1) == chunk.ids)
        parts = zip(
            torch.cat(losses).split(list(targets.counts)),
            torch.cat(hits).split(list(targets.counts)),
            strict=True,
        )
        return [Sums(loss.sum().item(), int(hit.sum())) for loss, hit in parts]

    def chunks(self, hidden_TD: Tensor, targets: Targets) -> list[tuple[Tensor, Chunk]]:
        """Cut the projection's rows into chunks of a fixed size."""
        size = self._layer.weight.shape[0]
        elements = CHUNK_ELEMENTS.get(hidden_TD.device.type, CHUNK_ELEMENTS["cuda"])
        step = max(TOKEN_MULTIPLE, elements // size // TOKEN_MULTIPLE * TOKEN_MULTIPLE)
        rows_ND = hidden_TD.new_zeros(targets.num_rows, hidden_TD.shape[-1])
        rows_ND[targets.places] = hidden_TD[targets.tokens]
        chunks = []
        for start in range(0, targets.num_rows, step):
            first, last = (
                int(torch.searchsorted(targets.places, edge)) for edge in (start, start + step)
            )
            rows = targets.places[first:last] - start
            chunk = Chunk(slice(start, start + step), rows, targets.ids[first:last])
            chunks.append((rows_ND[start : start + step], chunk))
        return chunks


@dataclass(frozen=True)
class Chunk:
    """Some rows of the projection.

    Attributes:
        span: Which of all rows.
        rows: Of its targets, within the chunk.
        ids: Of its targets.
    """

    span: slice
    rows: Tensor
    ids: Tensor


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, head: Head, targets: Targets, weights_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses = [weights_N.new_zeros(0)]  # there may be no target at all
        gradient_ND = hidden_TD.new_zeros(targets.num_rows, hidden_TD.shape[-1])
        for hidden_ND, chunk in head.chunks(hidden_TD, targets):
            logits_NV = head.logits(hidden_ND)
            logs_NV = functional.log_softmax(logits_NV, dim=-1, dtype=torch.float32)
            losses.append(-logs_NV[chunk.rows, chunk.ids])
            wrong_NV = logs_NV.exp_()
            wrong_NV[chunk.rows, chunk.ids] -= 1
            head.back(wrong_NV.to(logits_NV.dtype), logits_NV, gradient_ND[chunk.span])
        losses_N = torch.cat(losses)
        scaled_ND = gradient_ND[targets.places].float() * weights_N[:, None]
        ctx.save_for_backward(scaled_ND.to(gradient_ND.dtype), targets.tokens)
        ctx.shape = hidden_TD.shape
        ctx.mark_non_differentiable(losses_N)
        return (losses_N * weights_N).sum(), losses_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scaled_ND, tokens = ctx.saved_tensors
        gradient_TD = scaled_ND.new_zeros(ctx.shape)
        gradient_TD[tokens] = scaled_ND * gradients[0].to(scaled_ND.dtype)
        return gradient_TD, None, None, None
