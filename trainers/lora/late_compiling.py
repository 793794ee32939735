"""Loads bitsandbytes without PyTorch's compiler.

bitsandbytes has some functions compiled when it is imported, and that loads all of the compiler: half a
second of each host's start, and 40 MiB, for functions that few trials call. Here the compiler is loaded
when one of them is called. Seen in bitsandbytes 0.50; can go when it compiles at the first call itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch


def import_bitsandbytes() -> None:
    """Import it, if it is there; PEFT would, and says what is wrong with it."""
    its_torch: Any = torch
    compile_now = torch.compile
    its_torch.compile = _compile_later
    try:
        with contextlib.suppress(Exception):
            import bitsandbytes  # noqa: F401
    finally:
        its_torch.compile = compile_now


def _compile_later(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Take the place of ``torch.compile``: compile at the first call."""
    if function is None:
        return partial(_compile_later, **options)
    compiled = cache(lambda: torch.compile(function, **options))

    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call
