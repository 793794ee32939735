"""In which order a trial sees the training examples.

A pure function of the trial's seed and the step, so that a resumed trial needs to know nothing but
its step.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from trainers.lora.options import LoraOptions
from trainers.lora.seeds import derive_seed


class DataOrder:
    """Which examples are in which step. Steps are counted from 1.

    Attributes:
        steps_per_epoch: Optimizer steps of one pass over the training set.
    """

    def __init__(self, options: LoraOptions, num_samples: int) -> None:
        self._seed = options.seed
        self._num_samples = num_samples
        self._batch_size = options.per_device_train_batch_size
        self._step_size = self._batch_size * options.gradient_accumulation_steps
        self.steps_per_epoch = math.ceil(num_samples / self._step_size)

    def micro_batches(self, step: int) -> list[list[int]]:
        """Return the training examples of step ``step``, one list for each pass.

        Every epoch is a new permutation. As in transformers, its last step is smaller where the
        examples do not fill it.
        """
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        order = _permutation(self._seed, epoch, self._num_samples)
        first = position * self._step_size
        indices = order[first : first + self._step_size]
        return [
            list(indices[start : start + self._batch_size])
            for start in range(0, len(indices), self._batch_size)
        ]


@lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return tuple(torch.randperm(count, generator=generator).tolist())
