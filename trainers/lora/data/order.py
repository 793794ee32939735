"""In which order a trial sees the training examples.

A pure function of the trial's seed and the step, so that a resumed trial needs to know nothing but
its step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from trainers.lora.options import LoraOptions
from trainers.lora.seeds import derive_seed


class DataOrder:
    """Which examples are in which step. Steps are counted from 1.

    Attributes:
        steps_per_epoch: Optimizer steps of one pass over the training set.
    """

    def __init__(
        self, options: LoraOptions, num_samples: int, lengths: Sequence[int] | None = None
    ) -> None:
        """Take what decides the order.

        Args:
            options: Of the trial.
            num_samples: Examples of the training set.
            lengths: Tokens of each, to group them by.
        """
        self._strategy = options.train_sampling_strategy
        self._seed = options.seed
        self._num_samples = num_samples
        self._lengths = lengths
        self._batch_size = options.per_device_train_batch_size
        self._step_size = self._batch_size * options.gradient_accumulation_steps
        self.steps_per_epoch = math.ceil(num_samples / self._step_size)
        self._grouped: tuple[int, Sequence[int]] = (-1, ())  # newest epoch, its order

    def micro_batches(self, step: int) -> list[list[int]]:
        """Return the training examples of step ``step``, one list for each pass.

        Every epoch is a new permutation, unless the order is that of the file. As in transformers,
        its last step is smaller where the examples do not fill it.
        """
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        order = self._order(epoch)
        first = position * self._step_size
        indices = order[first : first + self._step_size]
        return [
            list(indices[start : start + self._batch_size])
            for start in range(0, len(indices), self._batch_size)
        ]

    def _order(self, epoch: int) -> Sequence[int]:
        if self._strategy == "sequential":
            return range(self._num_samples)
        if self._strategy == "random":
            return _permutation(self._seed, epoch, self._num_samples)
        if self._grouped[0] != epoch:
            self._grouped = (epoch, self._group_by_length(epoch))
        return self._grouped[1]

    def _group_by_length(self, epoch: int) -> Sequence[int]:
        """As transformers' LengthGroupedSampler: a step's examples are of like length."""
        from transformers.trainer_pt_utils import get_length_grouped_indices

        assert self._lengths is not None, "grouping needs the lengths"
        return get_length_grouped_indices(
            list(self._lengths), self._step_size, generator=_generator(self._seed, epoch)
        )


@lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    return tuple(torch.randperm(count, generator=_generator(seed, epoch)).tolist())


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
