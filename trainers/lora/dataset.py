"""The training and the validation set of a trainer, tokenised, and batches made from them.

Which samples are in which set depends on the files and on ``data_seed``, never on a trial.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainers.lora.encoding import IGNORE_INDEX, Encoder, Example
from trainers.lora.options import LoraOptions
from trainers.lora.records import read_records
from trainers.lora.samples import Sample, read_samples

TOKEN_MULTIPLE = 32
"""Rows are padded to a multiple of this, so that a row's length, on which the order of sums in a
matrix product depends, is set by its own batch in few and fixed steps."""


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
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    num_tokens: int
    num_targets: int

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.targets.to(device),
            self.num_tokens,
            self.num_targets,
        )


class Dataset:
    """Both sets of examples. Immutable.

    Attributes:
        train: Training examples, in file order.
        validation: Validation examples, in file order.
        notes: What was cut or left out, for the user.
        digest: Changes with any token of either set; a saved trial belongs to one.
    """

    def __init__(
        self,
        train: Sequence[Example],
        validation: Sequence[Example],
        notes: Sequence[str],
        pad_token_id: int,
        max_length: int,
    ) -> None:
        self.train = tuple(train)
        self.validation = tuple(validation)
        self.notes = tuple(notes)
        self.digest = _digest(self.train, self.validation)
        self._pad_token_id = pad_token_id
        self._max_length = max_length

    def train_batch(self, indices: Sequence[int]) -> Batch:
        """Return these training examples as one batch."""
        return self._collate([self.train[index] for index in indices])

    def validation_batch(self, indices: Sequence[int]) -> Batch:
        """Return these validation examples as one batch."""
        return self._collate([self.validation[index] for index in indices])

    def _collate(self, examples: Sequence[Example]) -> Batch:
        longest = max(len(example.input_ids) for example in examples)
        width = min(-(-longest // TOKEN_MULTIPLE) * TOKEN_MULTIPLE, self._max_length)
        shape = (len(examples), width)
        input_ids = torch.full(shape, self._pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        targets = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
        for row, example in enumerate(examples):
            length = len(example.input_ids)
            input_ids[row, :length] = example.input_ids
            attention_mask[row, :length] = 1
            targets[row, : length - 1] = example.labels[1:]
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            targets=targets,
            num_tokens=int(attention_mask.sum()),
            num_targets=int((targets != IGNORE_INDEX).sum()),
        )


def load_dataset(options: LoraOptions, encoder: Encoder, pad_token_id: int) -> Dataset:
    """Read, split, sample and tokenise the data that the options name.

    Raises:
        ValueError: A missing file, a bad row, or a set without anything to learn.
    """
    train_samples, eval_samples = _split(options)
    notes = []
    if not encoder.has_chat_template:
        notes.append(
            "the model has no chat template: conversations are written as "
            "'### Instruction: ... ### Response: ...'"
        )
    train, train_notes = _encode("training", train_samples, encoder, options.max_length)
    notes += train_notes
    evaluation: list[Example] = []
    if eval_samples:  # there are none where nothing is validated
        evaluation, eval_notes = _encode("validation", eval_samples, encoder, options.max_length)
        notes += eval_notes
    return Dataset(train, evaluation, notes, pad_token_id, options.max_length)


def _split(options: LoraOptions) -> tuple[list[Sample], list[Sample]]:
    """Return the samples to train and to validate on, after the limits."""
    train_path = Path(options.train_file).expanduser()
    samples = read_samples(read_records(train_path), options.data_format)
    train_order = _shuffled(len(samples), options.data_seed)
    if options.validation_file is not None:
        eval_path = Path(options.validation_file).expanduser()
        eval_pool = read_samples(read_records(eval_path), options.data_format)
        eval_order = _shuffled(len(eval_pool), options.data_seed)
    elif options.val_size is None:
        eval_pool, eval_order = [], []  # nothing is validated
    else:
        num_eval = _num_validation_samples(options.val_size, len(samples), train_path)
        eval_pool, eval_order = samples, train_order[:num_eval]
        train_order = train_order[num_eval:]
    return (
        [samples[index] for index in sorted(train_order[: options.max_train_samples])],
        [eval_pool[index] for index in sorted(eval_order[: options.eval_pool_size])],
    )


def _shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _num_validation_samples(val_size: float, num_samples: int, path: Path) -> int:
    wanted = round(val_size * num_samples) if val_size < 1 else int(val_size)
    wanted = max(wanted, 1)
    if wanted >= num_samples:
        raise ValueError(
            f"val_size: {val_size} takes {wanted} of the {num_samples} rows of {path} and leaves "
            f"none to train on. Give a smaller val_size, or a validation_file."
        )
    return wanted


def _encode(
    name: str, samples: Sequence[Sample], encoder: Encoder, max_length: int
) -> tuple[list[Example], list[str]]:
    """Tokenise one set; leave out what has nothing to learn, and say so."""
    examples = [encoder.encode(sample) for sample in samples]
    kept = [example for example in examples if example.num_targets > 0]
    if not kept:
        raise ValueError(
            f"none of the {len(examples)} {name} examples has a token of an answer within "
            f"max_length: {max_length}. Give a larger max_length."
        )
    num_truncated = sum(example.truncated for example in kept)
    num_skipped = sum(example.num_skipped_answers for example in kept)
    notes = []
    if num_truncated:
        notes.append(
            f"{num_truncated} of {len(examples)} {name} examples are cut to max_length {max_length}"
        )
    if len(kept) < len(examples):
        notes.append(
            f"{len(examples) - len(kept)} of {len(examples)} {name} examples are left out: no "
            f"token of their answer is within max_length {max_length}"
        )
    if num_skipped:
        notes.append(
            f"{num_skipped} earlier answers of {name} conversations are not learned: the chat "
            f"template rewrites them when the conversation goes on"
        )
    return kept, notes


def _digest(*example_sets: Sequence[Example]) -> str:
    sha = hashlib.sha256()
    for examples in example_sets:
        for example in examples:
            sha.update(example.input_ids.numpy().tobytes())
            sha.update(example.labels.numpy().tobytes())
        sha.update(b"end of set")
    return sha.hexdigest()
