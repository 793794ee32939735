"""The learning rate of a trial at each step: transformers' schedules."""

from __future__ import annotations

import math

import torch
import transformers

from trainers.lora.options import LoraOptions


class LearningRate:
    """The course of one trial's learning rate."""

    def __init__(self, options: LoraOptions, num_steps: int) -> None:
        """Prepare transformers' schedule.

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
        self._highest = options.learning_rate
        self._factor = scheduler.lr_lambdas[0]

    def at(self, step: int) -> float:
        """Return the learning rate with which step ``step``, counted from 1, is done."""
        return self._highest * self._factor(step - 1)
