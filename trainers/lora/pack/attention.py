"""Attention within rows that lie end to end.

Registered with transformers as an attention of its own, in place of the model's for the time of a
pass: it lays queries, keys and values out as rows, and calls the model's own function on all rows of
one width at once. Flash attention needs none of it: it keeps rows apart by their positions.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trainers.lora.pack.grid import Grid
from trainers.lora.pack.narrow_attention import attend_narrow, suits
from trainers.lora.pack.rows import Rows

NAME = "rows_end_to_end"
ARGUMENT = "rows_of_pass"
"""Under which a pass's rows travel through the model to its attention."""


@dataclass(frozen=True)
class RowAttention:
    """What attention needs to know of a pass.

    Attributes:
        rows: Of the pass.
        inner: The model's own attention, by transformers' name.
    """

    rows: Rows
    inner: str
    _masks: dict[object, Tensor] = field(default_factory=dict)
    _grids: dict[torch.device, Grid | None] = field(default_factory=dict)

    @cached_property
    def grid(self) -> Grid:
        """Where the tokens are in attention."""
        return Grid.of(self.rows.starts, self.rows.lengths, self.rows.width)

    def grid_on(self, device: torch.device) -> Grid | None:
        """Return the grid on a device; None where the rows lie as attention wants them."""
        if device not in self._grids:
            self._grids[device] = None if self.grid.is_plain else self.grid.to(device)
        return self._grids[device]

    def mask(self, run: int, window: int | None, like: Tensor) -> Tensor | None:
        """Return the mask of a run of rows; None where the causal flag says it all.

        Shape (rows or 1, 1, queries, keys), True where a query sees a key; ``added_mask`` for
        attention that takes no such one.
        """
        _, width = self.grid.runs[run]
        narrows = window is not None and window < width
        if self.inner == "eager":
            return self.added_mask(run, window, like)
        return self._mask(run, window, like, False) if narrows or self.rows.are_joined else None

    def added_mask(self, run: int, window: int | None, like: Tensor) -> Tensor:
        """Return what is added to the scores of a run: 0, or the least number of their type."""
        return self._mask(run, window, like, True)

    def _mask(self, run: int, window: int | None, like: Tensor, is_added: bool) -> Tensor:
        width = self.grid.runs[run][1]
        place = run if self.rows.are_joined else width
        key = (place, window, like.device, like.dtype, is_added)
        if key not in self._masks:
            narrows = window is not None and window < width
            mask = self._seen(run, window if narrows else None).to(like.device)
            if is_added:
                least = torch.finfo(like.dtype).min
                mask = torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(
                    ~mask, least
                )
            self._masks[key] = mask
        return self._masks[key]

    def _seen(self, run: int, window: int | None) -> Tensor:
        count, width = self.grid.runs[run]
        place = torch.arange(width)
        seen = place[:, None] >= place
        if window is not None:
            seen &= place[:, None] - place < window
        seen = seen[None, None]
        if self.rows.are_joined:
            first = sum(of_run for of_run, _ in self.grid.runs[:run])
            rows = self.grid.order[first : first + count]
            numbers = torch.stack([_numbers(self.rows.pieces[row], width) for row in rows])
            seen = seen & (numbers[:, None, :, None] == numbers[:, None, None, :])
        return seen


@contextlib.contextmanager
def attending_within(model: Any, rows: Rows) -> Iterator[dict[str, object]]:
    """Let a model keep rows apart; yield the arguments that its forward needs for that.

    Must last until the backward pass is done, as checkpointed layers compute anew in it.
    """
    config = model.config.get_text_config()
    inner = config._attn_implementation
    if "flash" in str(inner):
        yield {}
        return
    config._attn_implementation = NAME
    try:
        yield {ARGUMENT: RowAttention(rows, str(inner))}
    finally:
        config._attn_implementation = inner


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Return attention within each row, shape (1, tokens, heads, head size)."""
    within: RowAttention = arguments.pop(ARGUMENT)
    inner = _inner_function(module, within.inner)
    runs = within.grid.runs
    grid = within.grid_on(query.device)
    window = arguments.get("sliding_window")
    parts = []
    cut = [_cut(states, runs, grid) for states in (query, key, value)]
    for number, (queries, keys, values) in enumerate(zip(*cut, strict=True)):
        if within.inner == "sdpa" and suits(queries, arguments):
            added = within.added_mask(number, window, queries)
            output = attend_narrow(queries, keys, values, added, arguments.get("scaling"))
        else:
            mask = within.mask(number, window, queries)
            output, _ = inner(module, queries, keys, values, mask, **arguments)
        parts.append(output.reshape(-1, *output.shape[2:]))
    cells = parts[0] if len(parts) == 1 else torch.cat(parts)
    return (cells if grid is None else grid.gather(cells))[None], None


def _cut(states_1HTD: Tensor, runs: Sequence[tuple[int, int]], grid: Grid | None) -> list[Tensor]:
    """Return the rows of each run, shape (rows, heads, width, head size)."""
    cells_CHD = states_1HTD[0].transpose(0, 1)
    if grid is not None:
        cells_CHD = grid.spread(cells_CHD)
    pieces = cells_CHD.split([count * width for count, width in runs])
    return [
        piece.unflatten(0, (count, width)).transpose(1, 2)
        for piece, (count, width) in zip(pieces, runs, strict=True)
    ]


def _inner_function(module: torch.nn.Module, name: str) -> Callable[..., tuple[Tensor, object]]:
    own: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function: Callable[..., tuple[Tensor, object]] = ALL_ATTENTION_FUNCTIONS.get_interface(
        name, own
    )
    return function


def _numbers(lengths: Sequence[int], width: int) -> Tensor:
    """Return for each token of a row the number of its example; padding is one more."""
    counts = torch.tensor([*lengths, width - sum(lengths)])
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


AttentionInterface.register(NAME, _attend)
