"""One optimizer step as a line: memory, a jump of the gradient norm, and the program's log."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence

import psutil
import torch

from trainers.protocol import Scalar, StepLine

LOGGER = logging.getLogger("trainers.lora")

_GIB = 2**30

NUM_NORMS = 20
"""So many gradient norms say what is usual."""

_LEAST_NORMS = 5
"""Fewer do not."""

_SHOWN_DIGITS = 6


def memory(device: torch.device) -> dict[str, Scalar]:
    """Return the memory in use, in GiB: of a GPU, and of this process."""
    used: dict[str, Scalar] = {}
    if device.type == "cuda":
        used["memory_allocated_gib"] = torch.cuda.memory_allocated(device) / _GIB
        used["memory_peak_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
    used["process_memory_gib"] = psutil.Process().memory_info().rss / _GIB
    return used


def is_jump(norm: float, earlier: Sequence[float], factor: float | None) -> bool:
    """Return whether a gradient norm is above ``factor`` times what was usual before it."""
    if factor is None or len(earlier) < _LEAST_NORMS:
        return False
    return norm > factor * statistics.median(earlier)


def log(trial: int, line: StepLine) -> None:
    """Write a line to the program's log, as ``trial=3 step=10 loss=1.5``."""
    pairs = {"trial": trial, **line}
    LOGGER.info(" ".join(f"{name}={_shown(value)}" for name, value in pairs.items()))


def _shown(value: Scalar) -> str:
    if isinstance(value, float):
        return f"{value:.{_SHOWN_DIGITS}g}"
    return f'"{value}"' if isinstance(value, str) and " " in value else str(value)
