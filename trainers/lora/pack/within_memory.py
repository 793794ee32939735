"""Cuts what is to go through the model at once into passes that find memory."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from trainers.lora.memory import is_out_of_memory
from trainers.lora.pack.rows import Rows

log = logging.getLogger(__name__)

MOST_TOKENS = {"cpu": 1024}
"""Of a pass of several trials. With more a processor is no faster, and what is kept for the way back
grows with them. A GPU's passes are as large as its memory."""


class _Part(Protocol):
    @property
    def rows(self) -> Rows: ...


_P = TypeVar("_P", bound=_Part)
_R = TypeVar("_R")


@dataclass(frozen=True)
class Done(Generic[_R]):
    """What one part of a pass came to.

    Attributes:
        result: Of the pass.
        seconds: This part's share of the time, by its tokens.
        num_parts: Of the pass.
    """

    result: _R
    seconds: float
    num_parts: int


class WithinMemory:
    """Runs passes, and remembers how large the largest may be."""

    def __init__(self, device: torch.device) -> None:
        """Begin with what is sensible on a device."""
        self._most_tokens = MOST_TOKENS.get(device.type)

    def run(
        self, parts: list[_P], do: Callable[[list[_P]], list[_R]]
    ) -> list[Done[_R] | Exception]:
        """Run parts in as few passes as memory allows.

        A pass that runs out of memory is halved, and no later one is made as large. One that fails
        otherwise is done again by each trial alone, so that only the one at fault fails.
        """
        groups = self._cut(parts)
        if len(groups) > 1:
            return [outcome for group in groups for outcome in self.run(group, do)]
        start = time.perf_counter()
        failure: Exception
        try:
            results = do(parts)
        except Exception as error:
            # Its frames hold the tensors that there was no memory for.
            failure = error.with_traceback(None) if is_out_of_memory(error) else error
        else:
            seconds = time.perf_counter() - start
            width = sum(part.rows.width for part in parts)
            return [
                Done(result, seconds * part.rows.width / width, len(parts))
                for part, result in zip(parts, results, strict=True)
            ]
        if len(parts) == 1:
            return [failure]
        if is_out_of_memory(failure):
            self._make_smaller(parts)
            return self.run(parts, do)
        log.warning("a pass of %d trials failed, each is done alone: %s", len(parts), failure)
        return [outcome for part in parts for outcome in self.run([part], do)]

    def _cut(self, parts: list[_P]) -> list[list[_P]]:
        """Cut parts into passes of like size that are not larger than what is allowed."""
        if self._most_tokens is None:
            return [parts]
        total = sum(part.rows.width for part in parts)
        wanted = total / math.ceil(total / self._most_tokens)
        groups: list[list[_P]] = [[]]
        width = 0
        for part in parts:
            if groups[-1] and (width >= wanted or width + part.rows.width > self._most_tokens):
                groups.append([])
                width = 0
            groups[-1].append(part)
            width += part.rows.width
        return groups

    def _make_smaller(self, parts: Sequence[_Part]) -> None:
        widths = [part.rows.width for part in parts]
        self._most_tokens = max(sum(widths) // 2, max(widths))
        if self._most_tokens >= sum(widths):
            self._most_tokens = sum(widths) - 1
        log.warning(
            "a pass of %d trials (%d tokens) ran out of memory: from now on passes have up to %d "
            "tokens",
            len(parts),
            sum(widths),
            self._most_tokens,
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
