"""What this machine's processor can compute."""

from __future__ import annotations

import torch


def multiplies_bfloat16() -> bool:
    """Return whether it has products in bfloat16; without, each takes dozens of times as long."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
