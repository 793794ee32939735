"""Where an adapter starts: the two factors of each layer, from the trial's own seed.

PEFT draws them in place of ours only where that is more than two lines; then on a stand-in for the
layer, so that the draw is the same on every device and the base model is left alone.
"""

from __future__ import annotations

import math

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

_NAME = "start"


def plain_start(kind: object, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return a first factor (A) of Kaiming's or Gauss' start; the second one (B) is zero."""
    start = torch.empty(shape)
    if kind == "gaussian":
        return nn.init.normal_(start, std=1 / shape[0], generator=generator)
    return nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)


def drawn_start(config: LoraConfig, weight_OI: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return both factors of PEFT's ``config.init_lora_weights`` for one layer.

    Args:
        config: Of the trial's adapter.
        weight_OI: The layer's weight, shape (out, in), float32. Not changed.
        seed: Of this layer's draw.

    Returns:
        A, shape (rank, in), and B, shape (out, rank), float32, on the weight's device. A whole
        decomposition is deterministic and is left there; where it is drawn, on the CPU.

    Raises:
        ValueError: The rank is larger than the layer.
    """
    out_features, in_features = weight_OI.shape
    kind = str(config.init_lora_weights)
    if kind != "orthogonal" and config.r > min(weight_OI.shape):
        raise ValueError(
            f"init_lora_weights: {kind} takes lora_r: {config.r} directions out of a layer that "
            f"has {min(weight_OI.shape)}. Give lora_r: {min(weight_OI.shape)} or less."
        )
    is_exact = kind in ("pissa", "olora")
    stand_in = nn.Linear(in_features, out_features, bias=False, device="meta")
    stand_in.weight = nn.Parameter(weight_OI.to(weight_OI.device if is_exact else "cpu", copy=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = LoraLinear(stand_in, _NAME, config, r=config.r, lora_alpha=config.lora_alpha)
    first, second = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
    return first.detach().float(), second.detach().float()
