"""Rows side by side, as attention wants them, out of tokens that lie end to end.

Rows are sorted by width, so that those of one width, whosever they are, are attended at once. Where a
row is padded is on the way here only: nothing but attention ever computes on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from trainers.lora.data.dataset import padded


@dataclass(frozen=True)
class Grid:
    """Where each token of a pass is when its rows lie side by side.

    Attributes:
        order: The rows, widest first.
        runs: Rows of one width, in that order: how many, and how wide.
        token_of_cell: Shape (cells,); the cells that pad a row read its first token.
        cell_of_token: Shape (tokens,); the tokens that pad a trial read the cell of the one before.
        empty_cells: Those that pad a row.
        empty_tokens: Those that pad a trial.
    """

    order: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]
    token_of_cell: Tensor
    cell_of_token: Tensor
    empty_cells: Tensor
    empty_tokens: Tensor

    @classmethod
    def of(cls, starts: Sequence[int], lengths: Sequence[int], num_tokens: int) -> Grid:
        """Lay out rows.

        Args:
            starts: First token of each row.
            lengths: Tokens of each.
            num_tokens: Of the pass; what is behind a row's end is padding.
        """
        order = sorted(range(len(starts)), key=lambda row: -padded(lengths[row]))
        widths = [padded(lengths[row]) for row in order]
        runs = tuple((len(list(run)), width) for width, run in groupby(widths))
        token_of_cell = torch.cat(
            [
                _tokens(starts[row], lengths[row], width)
                for row, width in zip(order, widths, strict=True)
            ]
        )
        is_empty = torch.cat(
            [torch.arange(width) >= lengths[row] for row, width in zip(order, widths, strict=True)]
        )
        cell_of_token = torch.full((num_tokens,), -1)
        (cells,) = (~is_empty).nonzero(as_tuple=True)
        cell_of_token[token_of_cell[cells]] = cells
        (empty_tokens,) = (cell_of_token < 0).nonzero(as_tuple=True)
        for token in empty_tokens.tolist():  # fewer than 32 a trial
            cell_of_token[token] = cell_of_token[token - 1]
        (empty_cells,) = is_empty.nonzero(as_tuple=True)
        return cls(tuple(order), runs, token_of_cell, cell_of_token, empty_cells, empty_tokens)

    @property
    def is_plain(self) -> bool:
        """Whether the rows lie side by side already: none is padded, and none is moved."""
        cells = torch.arange(len(self.token_of_cell), device=self.token_of_cell.device)
        return torch.equal(self.token_of_cell, cells)

    def to(self, device: torch.device) -> Grid:
        """Return the grid on a device."""
        return Grid(
            self.order,
            self.runs,
            self.token_of_cell.to(device),
            self.cell_of_token.to(device),
            self.empty_cells.to(device),
            self.empty_tokens.to(device),
        )

    def spread(self, states_THD: Tensor) -> Tensor:
        """Return tokens end to end as cells side by side, shape (cells, ...)."""
        moved: Tensor = _Move.apply(
            states_THD, self.token_of_cell, self.cell_of_token, self.empty_tokens
        )
        return moved

    def gather(self, cells_CHD: Tensor) -> Tensor:
        """Return cells side by side as tokens end to end, shape (tokens, ...)."""
        moved: Tensor = _Move.apply(
            cells_CHD, self.cell_of_token, self.token_of_cell, self.empty_cells
        )
        return moved


class _Move(torch.autograd.Function):
    """Takes entries along the first dimension; what only fills up gets no gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, index: Tensor, back: Tensor, fillers: Tensor) -> Tensor:
        ctx.save_for_backward(back, fillers)
        return states.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        back, fillers = ctx.saved_tensors
        return gradients[0].index_select(0, back).index_fill_(0, fillers, 0), None, None, None


def _tokens(start: int, length: int, width: int) -> Tensor:
    tokens = torch.arange(start, start + width)
    tokens[length:] = start
    return tokens
