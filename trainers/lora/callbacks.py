"""Runs transformers' callbacks for one trial: their events in the Trainer's order.

A callback sees its own trial only: arguments, state and control are the trial's own copies, and the
model is a read-only view of its adapter. What to do about a callback's wishes is up to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainers.lora.options import LoraOptions
from trainers.protocol import Scalar


class CallbackError(RuntimeError):
    """A callback raised; the message names its path and the event, the cause is chained."""


@dataclass(frozen=True)
class Wishes:
    """What the trial's control flags ask for after an event.

    Attributes:
        stop: End the training after this step.
        evaluate: Validate now (the validation that is due, or one that a callback asks for).
        save: Save a checkpoint now.
        log: Write a log line now.
    """

    stop: bool = False
    evaluate: bool = False
    save: bool = False
    log: bool = False


class TrialCallbacks:
    """The callbacks of one trial, with their arguments, state and control.

    The order of calls for each step::

        callbacks.step_begin()                       # also begins the training and the epoch
        callbacks.pre_optimizer_step()               # gradients are clipped
        callbacks.optimizer_step()                   # weights are updated, gradients still there
        wishes = callbacks.step_end(line, evaluation_due, is_last)
        if wishes.evaluate:
            wishes = callbacks.evaluated(metrics)
        if wishes.save:
            wishes = callbacks.saved()               # once the checkpoint is written
        if callbacks.is_epoch_end:
            wishes = callbacks.epoch_end()           # its wishes are met in the same way
        if wishes.stop or is_last:
            callbacks.train_end()
    """

    def __init__(
        self,
        entries: Sequence[str | Mapping[str, object]],
        options: LoraOptions,
        num_steps: int,
        steps_per_epoch: int,
        parameters: Mapping[str, nn.Parameter],
        config: Any,
        device: torch.device,
        tokenizer: Any = None,
    ) -> None:
        """Import and make the callbacks.

        Args:
            entries: Dotted paths as in ``"transformers:EarlyStoppingCallback"``, or mappings of
                ``path`` and the keyword arguments.
            options: The trial's.
            num_steps: Of the full trial.
            steps_per_epoch: Optimizer steps of one pass over the training set.
            parameters: The trial's own adapter.
            config: The base model's config; copied.
            device: Where the model is.
            tokenizer: Copied; None: callbacks get no ``processing_class``.

        Raises:
            ValueError: A path leads to no callback, or its arguments do not fit.
        """
        raise NotImplementedError

    notes: tuple[str, ...] = ()
    """What the user should know: events that a callback handles and that never happen here."""

    @property
    def is_epoch_end(self) -> bool:
        """Whether the step that was ended last is the last of an epoch, or of the trial."""
        raise NotImplementedError

    def train_begin(self) -> None:
        """Begin the training, or go on with it after ``load_state``."""
        raise NotImplementedError

    def epoch_begin(self) -> None:
        raise NotImplementedError

    def step_begin(self) -> None:
        """Begin a step, and before it the training and the epoch if they have not begun."""
        raise NotImplementedError

    def pre_optimizer_step(self) -> None:
        """Say that gradients are clipped and the optimizer is about to step."""
        raise NotImplementedError

    def optimizer_step(self) -> None:
        """Say that the optimizer has stepped; gradients are still there."""
        raise NotImplementedError

    def step_end(
        self, line: Mapping[str, Scalar], evaluation_due: bool = False, is_last: bool = False
    ) -> Wishes:
        """End a step and log its line; return what is wished for after both.

        Args:
            line: The step's line: ``step`` and ``epoch`` in it set the state's.
            evaluation_due: Whether the schedule validates after this step.
            is_last: Whether the schedule ends with this step.
        """
        raise NotImplementedError

    def logged(self, logs: Mapping[str, Scalar]) -> Wishes:
        """Log a line that belongs to no step; also records it in the state's history."""
        raise NotImplementedError

    def evaluated(self, metrics: Mapping[str, float]) -> Wishes:
        """Take in a validation: log it, tell the callbacks, then compare with the best so far."""
        raise NotImplementedError

    def saved(self) -> Wishes:
        raise NotImplementedError

    def epoch_end(self) -> Wishes:
        raise NotImplementedError

    def train_end(self) -> None:
        raise NotImplementedError

    def state(self) -> dict[str, object]:
        """Return what a resumed trial needs, as plain JSON."""
        raise NotImplementedError

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Bring callbacks at their beginning to where the saved ones were."""
        raise NotImplementedError
