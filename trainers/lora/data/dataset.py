"""The training and the validation set of a trainer, tokenised, and batches made from them.

How rows become examples is ``example_sets``, where they are kept ``token_cache``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.lora.data.encoding import IGNORE_INDEX, Encoder, Example
from trainers.lora.data.packing import join, pack, pieces, positions
from trainers.lora.data.sources import ONLY_SET
from trainers.lora.data.token_cache import load_example_sets
from trainers.lora.options import LoraOptions

TOKEN_MULTIPLE = 32
"""Rows are padded to a multiple of this, so that a row's length, on which the order of sums in a
matrix product depends, is set by its own batch in few and fixed steps."""


def padded(length: int) -> int:
    """Return the next multiple of TOKEN_MULTIPLE."""
    return -(-length // TOKEN_MULTIPLE) * TOKEN_MULTIPLE


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass.

    Attributes:
        input_ids: Shape (rows, tokens), padded on the right.
        attention_mask: Same shape, 0 at padding.
        targets: Same shape: the id that follows each token if it is to be learned, else
            IGNORE_INDEX.
        num_tokens: Tokens that are no padding.
        num_targets: Targets that are not IGNORE_INDEX.
        position_ids: Same shape, for rows of several examples: each one's begin at 0, and keep it
            apart from the others in place of the mask. None for rows of one example.
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    num_tokens: int
    num_targets: int
    position_ids: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.targets.to(device),
            self.num_tokens,
            self.num_targets,
            None if self.position_ids is None else self.position_ids.to(device),
        )


class Dataset:
    """Both sets of examples. Immutable.

    Attributes:
        train: Training examples, in file order; packed ones in rows of several.
        train_lengths: Tokens of each of these.
        validation: Validation examples of all sets, in file order.
        validation_sets: Each validation set's examples as indices into ``validation``, by name;
            ``validation`` where there is only one, without a name.
        notes: What was cut or left out, for the user.
        num_skipped_rows: Rows left out because they could not be used.
        digest: Changes with any token of either set; a saved trial belongs to one.
    """

    def __init__(
        self,
        train: Sequence[Example],
        validation: Sequence[Example],
        notes: Sequence[str],
        pad_token_id: int,
        max_length: int,
        validation_sizes: Mapping[str, int] | None = None,
        num_skipped_rows: int = 0,
        one_row: bool = False,
    ) -> None:
        """Take examples that are tokenised.

        Args:
            train: To train on.
            validation: To validate on, one set after the other.
            notes: For the user.
            pad_token_id: Fills rows.
            max_length: No row of one example, or of packed ones, is wider.
            validation_sizes: Examples of each validation set; None: all are one set.
            num_skipped_rows: Rows left out.
            one_row: Lay packed rows end to end, as flash attention wants them.
        """
        self.train = tuple(train)
        self.train_lengths = tuple(len(example.input_ids) for example in self.train)
        self.validation = tuple(validation)
        if validation_sizes is None:
            validation_sizes = {ONLY_SET: len(self.validation)} if self.validation else {}
        self.validation_sets: Mapping[str, tuple[int, ...]] = _ranges(validation_sizes)
        self.notes = tuple(notes)
        self.num_skipped_rows = num_skipped_rows
        self.digest = _digest(self.train, self.validation, validation_sizes)
        self._pad_token_id = pad_token_id
        self._max_length = max_length
        self._one_row = one_row

    def train_batch(self, indices: Sequence[int]) -> Batch:
        """Return these training examples as one batch."""
        return self._collate(self.train_examples(indices))

    def validation_batch(self, indices: Sequence[int]) -> Batch:
        """Return these validation examples as one batch."""
        return self._collate(self.validation_examples(indices))

    def train_examples(self, indices: Sequence[int]) -> list[Example]:
        """Return these training examples."""
        return [self.train[index] for index in indices]

    def validation_examples(self, indices: Sequence[int]) -> list[Example]:
        """Return these validation examples."""
        return [self.validation[index] for index in indices]

    def where(self, indices: Sequence[int]) -> list[str]:
        """Return the rows of the data that these training examples are, as in ``a.jsonl:17``."""
        return [self.train[index].where for index in indices]

    def _collate(self, examples: Sequence[Example]) -> Batch:
        is_packed = any(example.lengths for example in examples)
        max_length = self._max_length
        if is_packed and self._one_row:
            examples = [join(examples)]
            max_length = max(max_length, len(examples[0].input_ids))
        longest = max(len(example.input_ids) for example in examples)
        width = min(padded(longest), max_length)
        shape = (len(examples), width)
        input_ids = torch.full(shape, self._pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        targets = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
        for row, example in enumerate(examples):
            length = len(example.input_ids)
            input_ids[row, :length] = example.input_ids
            attention_mask[row, :length] = 1
            targets[row, : length - 1] = example.labels[1:]
        position_ids = None
        if is_packed:
            position_ids = torch.stack([positions(pieces(one), width) for one in examples])
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            targets=targets,
            num_tokens=int(attention_mask.sum()),
            num_targets=int((targets != IGNORE_INDEX).sum()),
            position_ids=position_ids,
        )


def load_dataset(options: LoraOptions, encoder: Encoder, pad_token_id: int) -> Dataset:
    """Read, split, mix, sample, tokenise and pack the data that the options name.

    What is tokenised once is kept on disk for other processes with the same data and options.

    Raises:
        ValueError: A missing file, a bad row, or a set without anything to learn.
    """
    sets, notes = load_example_sets(options, encoder)
    notes = [*sets.notes, *notes]
    train: Sequence[Example] = sets.train
    if options.packing:
        train = pack(sets.train, options.max_length, options.data_seed)
        notes.append(
            f"packing: {len(sets.train)} training examples are in {len(train)} rows of up to "
            f"{options.max_length} tokens"
        )
    return Dataset(
        train,
        [example for examples in sets.validation.values() for example in examples],
        notes,
        pad_token_id,
        options.max_length,
        validation_sizes={name: len(examples) for name, examples in sets.validation.items()},
        num_skipped_rows=sets.num_skipped_rows,
        one_row="flash" in (options.attn_implementation or ""),
    )


def _ranges(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    ranges, first = {}, 0
    for name, size in sizes.items():
        ranges[name] = tuple(range(first, first + size))
        first += size
    return ranges


def _digest(
    train: Sequence[Example], validation: Sequence[Example], validation_sizes: Mapping[str, int]
) -> str:
    sha = hashlib.sha256()
    for examples in (train, validation):
        for example in examples:
            sha.update(str(example.lengths or "").encode())
            sha.update(example.input_ids.numpy().tobytes())
            sha.update(example.labels.numpy().tobytes())
        sha.update(b"end of set")
    if list(validation_sizes) not in ([], [ONLY_SET]):
        sha.update(json.dumps(validation_sizes).encode())
    return sha.hexdigest()
