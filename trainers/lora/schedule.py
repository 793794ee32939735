"""What a trial does at which step: data order, learning rate, validations, random streams.

All of it is a pure function of the options, the number of examples and the step, so that a resumed
trial needs to know nothing but its step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache

import torch
import transformers

from trainers.lora.options import LoraOptions


def derive_seed(seed: int, *stream: object) -> int:
    """Return the seed of one of a trial's random streams, as in ``(42, "dropout", step, pass)``."""
    name = ":".join(str(part) for part in (seed, *stream))
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes 63 bits


class Schedule:
    """The course of one trial. Steps are counted from 1 when they are done.

    Attributes:
        num_steps: Optimizer steps of the full trial.
        steps_per_epoch: Optimizer steps of one pass over the training set.
        validation_steps: After which steps the trial validates, in order; the last one included.
    """

    def __init__(self, options: LoraOptions, num_train_samples: int) -> None:
        self._seed = options.seed
        self._num_train_samples = num_train_samples
        self._batch_size = options.per_device_train_batch_size
        self._step_size = self._batch_size * options.gradient_accumulation_steps
        self.steps_per_epoch = math.ceil(num_train_samples / self._step_size)
        self.num_steps = _num_steps(options, self.steps_per_epoch)
        self.validation_steps = _validation_steps(options.eval_steps, self.num_steps)
        self._factor = _learning_rate_factor(options, self.num_steps)
        self._learning_rate = options.learning_rate

    def learning_rate(self, step: int) -> float:
        """Return the learning rate with which step ``step`` is done."""
        return self._learning_rate * self._factor(step - 1)

    def epoch(self, step: int) -> float:
        """Return how many passes over the training set ``step`` steps are."""
        return step / self.steps_per_epoch

    def micro_batches(self, step: int) -> list[list[int]]:
        """Return the training examples of step ``step``, one list for each pass.

        Every epoch is a new permutation. As in transformers, its last step is smaller where the
        examples do not fill it.
        """
        epoch, position = divmod(step - 1, self.steps_per_epoch)
        order = _permutation(self._seed, epoch, self._num_train_samples)
        first = position * self._step_size
        indices = order[first : first + self._step_size]
        return [
            list(indices[start : start + self._batch_size])
            for start in range(0, len(indices), self._batch_size)
        ]


def _num_steps(options: LoraOptions, steps_per_epoch: int) -> int:
    if options.max_steps > 0:
        return options.max_steps
    return math.ceil(options.num_train_epochs * steps_per_epoch)


def _validation_steps(eval_steps: float, num_steps: int) -> tuple[int, ...]:
    """Return the steps to validate after.

    A fraction is taken of the trial anew for each validation: 0.2 means five validations also when
    the trial has 7 or 11 steps (transformers rounds the interval once), so that trials
    of different batch size validate equally often, each time at the same share of their budget.
    """
    if eval_steps >= 1:
        steps = {*range(int(eval_steps), num_steps, int(eval_steps)), num_steps}
    else:
        num_validations = math.ceil(round(1 / eval_steps, 6))
        shares = (min(index * eval_steps, 1.0) for index in range(1, num_validations + 1))
        steps = {math.ceil(round(share * num_steps, 6)) for share in shares}
    return tuple(sorted(steps))


def _learning_rate_factor(options: LoraOptions, num_steps: int) -> Callable[[int], float]:
    """Return transformers' schedule as a function from steps done to a factor.

    Raises:
        ValueError: The learning rate does not suit the schedule.
    """
    warmup = options.warmup_steps
    num_warmup_steps = math.ceil(warmup * num_steps) if 0 < warmup < 1 else int(warmup)
    # The schedules read the highest rate from an optimizer, and are LambdaLR, all those in
    # SchedulerName: what they know is in this one function.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=options.learning_rate)
    scheduler = transformers.get_scheduler(
        options.lr_scheduler_type, optimizer, num_warmup_steps, num_steps
    )
    assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
    factor: Callable[[int], float] = scheduler.lr_lambdas[0]
    return factor


@lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return tuple(torch.randperm(count, generator=generator).tolist())
