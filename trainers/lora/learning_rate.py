"""The learning rate of a trial at each step: transformers' schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import transformers

from trainers.lora.options import LoraOptions


class LearningRate:
    """The course of one trial's learning rate: by the step, or by what validations say."""

    def __init__(self, options: LoraOptions, num_steps: int) -> None:
        """Prepare transformers' schedule.

        Raises:
            ValueError: The schedule's arguments do not suit it, the rate or the trial's length.
        """
        self._options = options
        self._num_steps = num_steps
        self._observed: list[float] = []
        try:
            self._begin()
            for step in range(1, num_steps + 1):
                self.at(step)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(
                f"lr_scheduler_type: {options.lr_scheduler_type} does not work with learning_rate: "
                f"{options.learning_rate}, warmup_steps: {options.warmup_steps}, "
                f"lr_scheduler_kwargs: {options.lr_scheduler_kwargs} over {num_steps} steps: "
                f"{error}."
            ) from error

    def at(self, step: int) -> float:
        """Return the learning rate with which step ``step``, counted from 1, is done.

        Of a schedule by validations it is the rate after the newest one, whatever the step.
        """
        if self._options.is_scheduled_by_validation:
            return float(self._optimizer.param_groups[0]["lr"])
        return self._options.learning_rate * self._scheduler.lr_lambdas[0](step - 1)

    def observe(self, metric: float) -> None:
        """Take in what a validation measured; only schedules that go by validations do."""
        if self._options.is_scheduled_by_validation:
            self._observed.append(float(metric))
            self._scheduler.step(metric)

    def state(self) -> dict[str, object]:
        """Return what is needed to go on, as plain as JSON."""
        return {"observed": list(self._observed)}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Bring a course at its beginning to a saved state."""
        observed = state.get("observed", [])
        assert isinstance(observed, list)
        self._observed = []
        self._begin()
        for metric in observed:  # few, and the schedule is a function of them alone
            self.observe(metric)

    def _begin(self) -> None:
        options, num_steps = self._options, self._num_steps
        warmup, arguments = options.warmup_steps, dict(options.lr_scheduler_kwargs)
        num_warmup_steps = math.ceil(warmup * num_steps) if 0 < warmup < 1 else int(warmup)
        if options.is_scheduled_by_validation:
            more_is_better = options.is_greater_better(options.best_metric)
            arguments.setdefault("mode", "max" if more_is_better else "min")
        length: int | None = num_steps
        if options.lr_scheduler_type == "warmup_stable_decay":
            num_decay_steps = arguments["num_decay_steps"]
            if not isinstance(num_decay_steps, int) or num_decay_steps < 0:
                raise ValueError(
                    f"num_decay_steps must be a number of steps, not {num_decay_steps}"
                )
            if arguments.get("num_stable_steps") is not None:
                length = None  # transformers warns where it is given both
            elif num_warmup_steps + num_decay_steps > num_steps:
                raise ValueError(
                    f"{num_warmup_steps} steps of warmup and {num_decay_steps} of decay do not fit"
                )
        # The schedules read the highest rate from an optimizer, and those by validations write
        # it there.
        self._optimizer = torch.optim.SGD([torch.zeros(1)], lr=options.learning_rate)
        self._scheduler = transformers.get_scheduler(
            options.lr_scheduler_type, self._optimizer, num_warmup_steps, length, arguments
        )
