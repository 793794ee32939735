"""Examples laid end to end: what goes through the model at once, without a dimension for rows.

A trial's rows are not padded, only their sum is, to a multiple of TOKEN_MULTIPLE. So the number of
tokens of a trial, on which the order of sums in its matrix products depends, is set by its own
examples, and next to no padding goes through the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

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
        pieces: Of each row the tokens of its examples.
        starts: Of each row its first token.
        num_tokens: Tokens that are no padding.
        num_targets: Targets that are not IGNORE_INDEX.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Tensor
    pieces: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    num_tokens: int
    num_targets: int

    @property
    def width(self) -> int:
        """Tokens with padding."""
        return len(self.input_ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row."""
        return tuple(map(sum, self.pieces))

    @property
    def are_joined(self) -> bool:
        """Whether rows hold several examples that must not see each other."""
        return any(len(lengths) > 1 for lengths in self.pieces)

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
    lengths = [len(example.input_ids) for example in examples]
    num_tokens = sum(lengths)
    starts = [0, *accumulate(lengths)][:-1]
    input_ids = torch.zeros(padded(num_tokens), dtype=torch.int64)  # padding: any id
    targets = torch.full_like(input_ids, IGNORE_INDEX)
    for example, start, length in zip(examples, starts, lengths, strict=True):
        input_ids[start : start + length] = example.input_ids
        targets[start : start + length - 1] = example.labels[1:]
    parts = [pieces(example) for example in examples]
    return Rows(
        input_ids=input_ids,
        position_ids=positions([length for part in parts for length in part], len(input_ids)),
        targets=targets,
        pieces=tuple(parts),
        starts=tuple(starts),
        num_tokens=num_tokens,
        num_targets=int((targets != IGNORE_INDEX).sum()),
    )


def join_rows(all_rows: Sequence[Rows]) -> Rows:
    """Return the rows of several trials end to end, in this order."""
    if len(all_rows) == 1:
        return all_rows[0]
    firsts = [0, *accumulate(rows.width for rows in all_rows)]
    return Rows(
        input_ids=torch.cat([rows.input_ids for rows in all_rows]),
        position_ids=torch.cat([rows.position_ids for rows in all_rows]),
        targets=torch.cat([rows.targets for rows in all_rows]),
        pieces=tuple(row for rows in all_rows for row in rows.pieces),
        starts=tuple(
            first + start
            for rows, first in zip(all_rows, firsts, strict=False)
            for start in rows.starts
        ),
        num_tokens=sum(rows.num_tokens for rows in all_rows),
        num_targets=sum(rows.num_targets for rows in all_rows),
    )
