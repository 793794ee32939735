"""How long a trial trains, and after which steps it validates."""

from __future__ import annotations

import math

from trainers.lora.options import LoraOptions


class Schedule:
    """The course of one trial. Steps are counted from 1 when they are done.

    Attributes:
        num_steps: Optimizer steps of the full trial.
        steps_per_epoch: Optimizer steps of one pass over the training set.
        validation_steps: After which steps the trial validates, in order; the last one included.
            Where nothing is validated, after which it reports.
        logging_steps: Every so many steps one is logged.
    """

    def __init__(self, options: LoraOptions, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.num_steps = _num_steps(options, steps_per_epoch)
        if not options.is_scheduled:
            self.validation_steps: tuple[int, ...] = (self.num_steps,)
        elif options.eval_strategy == "epoch":
            self.validation_steps = _validation_steps(steps_per_epoch, self.num_steps)
        else:
            self.validation_steps = _validation_steps(options.eval_steps, self.num_steps)
        every = options.logging_steps
        self.logging_steps = int(every) if every >= 1 else math.ceil(every * self.num_steps)

    def epoch(self, step: int) -> float:
        """Return how many passes over the training set ``step`` steps are."""
        return step / self.steps_per_epoch


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
