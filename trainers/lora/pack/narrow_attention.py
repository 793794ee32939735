"""Causal attention of narrow rows on a CPU in half precision, by plain batched products.

PyTorch's own kernel for that type is made for long rows: at 32 to 128 tokens its pass forward and back
takes several times as long (``python -m benchmarks.packing attention`` says how many). As in
transformers' eager attention, the scores are in the model's type.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WIDEST = 256
"""Tokens of a row; much beyond them PyTorch's kernel is as fast, and takes less memory."""

_UNKNOWN = ("softcap", "s_aux", "position_bias", "cache")
"""What some models ask of attention beside the usual, and is not done here."""


def suits(query_RHWD: Tensor, arguments: dict[str, object]) -> bool:
    """Return whether this attention may and should be computed here."""
    return (
        query_RHWD.device.type == "cpu"
        and query_RHWD.dtype in (torch.bfloat16, torch.float16)
        and query_RHWD.shape[2] <= WIDEST
        and not arguments.get("dropout")
        and all(arguments.get(name) is None for name in _UNKNOWN)
    )


def attend_narrow(
    query_RHWD: Tensor, key_RKWD: Tensor, value_RKWD: Tensor, mask: Tensor, scaling: float | None
) -> Tensor:
    """Return attention within each row, shape (rows, width, heads, head size).

    Queries that share a head of keys are laid side by side, so that no keys are repeated.

    Args:
        query_RHWD: Shape (rows, heads, width, head size).
        key_RKWD: Shape (rows, heads of keys, width, head size).
        value_RKWD: As the keys.
        mask: What is added to the scores: shape (rows or 1, 1, width, width).
        scaling: Of the scores; None: 1 / sqrt(head size).
    """
    rows, heads, width, size = query_RHWD.shape
    key_heads = key_RKWD.shape[1]
    shared = heads // key_heads
    query = query_RHWD.reshape(rows * key_heads, shared * width, size)
    key, value = (s.reshape(rows * key_heads, width, s.shape[-1]) for s in (key_RKWD, value_RKWD))
    mask = mask.repeat(1, 1, shared, 1)
    if len(mask) > 1:
        mask = mask.expand(-1, key_heads, -1, -1)
    mask = mask.reshape(-1, shared * width, width).expand(len(query), -1, -1)
    scale = size**-0.5 if scaling is None else scaling
    scores = torch.baddbmm(mask, query, key.mT, alpha=scale)
    output = torch.bmm(functional.softmax(scores, dim=-1), value)
    return output.view(rows, heads, width, -1).transpose(1, 2)
