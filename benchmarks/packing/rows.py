"""Token rows of one trial's step, as transformers takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows of equal length, without padding.

    Attributes:
        input_ids: Shape (rows, tokens).
        attention_mask: Same shape, all ones.
        labels: Same shape: the ids themselves, or -100 where nothing is learned. Not shifted: the
            model does that.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def stack(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several trials as one batch."""
    return Rows(
        torch.cat([part.input_ids for part in parts]),
        torch.cat([part.attention_mask for part in parts]),
        torch.cat([part.labels for part in parts]),
    )
