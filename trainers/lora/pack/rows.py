"""Examples laid end to end: what goes through the model at once, without a dimension for rows.

Every row is padded to a multiple of TOKEN_MULTIPLE by itself, never to the length of another one.
So the number of tokens of a trial, on which the order of sums in its matrix products depends, is
set by its own examples, and no padding is spent on neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from trainers.lora.data.dataset import padded
from trainers.lora.data.encoding import IGNORE_INDEX, Example
from trainers.lora.data.packing import pieces, positions


@dataclass(frozen=True)
class Rows:
    """Rows of one or more trials, end to end.

    Attributes:
        input_ids: Shape (tokens,).
        position_ids: Same shape; each example's begin at 0.
        targets: Same shape: the id that follows each token if it is to be learned, else
            IGNORE_INDEX.
        pieces: Of each row the tokens of its examples, and its width with padding.
        are_joined: Whether rows hold several examples that must not see each other.
        num_tokens: Tokens that are no padding.
        num_targets: Targets that are not IGNORE_INDEX.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Tensor
    pieces: tuple[tuple[tuple[int, ...], int], ...]
    are_joined: bool
    num_tokens: int
    num_targets: int

    @property
    def width(self) -> int:
        """Tokens with padding."""
        return len(self.input_ids)

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Neighbouring rows of one width: how many, and how wide."""
        widths = [width for _, width in self.pieces]
        return tuple((len(list(run)), width) for width, run in groupby(widths))

    def to(self, device: torch.device) -> Rows:
        """Return the rows on a device."""
        if self.input_ids.device == device:
            return self
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            targets=self.targets.to(device),
        )


def lay_out(examples: Sequence[Example]) -> Rows:
    """Return examples as rows, the widest first."""
    examples = sorted(examples, key=lambda example: -len(example.input_ids))
    widths = [padded(len(example.input_ids)) for example in examples]
    input_ids = torch.zeros(sum(widths), dtype=torch.int64)  # padding: any id
    targets = torch.full_like(input_ids, IGNORE_INDEX)
    start = 0
    for example, width in zip(examples, widths, strict=True):
        length = len(example.input_ids)
        input_ids[start : start + length] = example.input_ids
        targets[start : start + length - 1] = example.labels[1:]
        start += width
    parts = [pieces(example) for example in examples]
    return Rows(
        input_ids=input_ids,
        position_ids=torch.cat(
            [positions(part, width) for part, width in zip(parts, widths, strict=True)]
        ),
        targets=targets,
        pieces=tuple(zip(parts, widths, strict=True)),
        are_joined=any(example.lengths for example in examples),
        num_tokens=sum(len(example.input_ids) for example in examples),
        num_targets=int((targets != IGNORE_INDEX).sum()),
    )


def join_rows(all_rows: Sequence[Rows]) -> Rows:
    """Return the rows of several trials end to end, in this order."""
    if len(all_rows) == 1:
        return all_rows[0]
    return Rows(
        input_ids=torch.cat([rows.input_ids for rows in all_rows]),
        position_ids=torch.cat([rows.position_ids for rows in all_rows]),
        targets=torch.cat([rows.targets for rows in all_rows]),
        pieces=tuple(row for rows in all_rows for row in rows.pieces),
        are_joined=any(rows.are_joined for rows in all_rows),
        num_tokens=sum(rows.num_tokens for rows in all_rows),
        num_targets=sum(rows.num_targets for rows in all_rows),
    )
