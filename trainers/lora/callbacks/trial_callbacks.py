"""Runs transformers' callbacks for one trial: their events in the Trainer's order.

A callback sees its own trial only: arguments, state and control are the trial's own copies, and the
model is a read-only view of its adapter. What to do about a callback's wishes is up to the caller.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerControl, TrainerState

from trainers.lora.callbacks.callback_view import AdapterView, training_arguments
from trainers.lora.callbacks.own_callback import CallbackError, OwnCallback, as_json
from trainers.lora.options import LoraOptions
from trainers.protocol import Scalar

_NOT_OF_VALIDATION = ("epoch", "train_loss")


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

    Attributes:
        notes: What the user should know: events that a callback handles and that never happen here,
            and state of a callback that a resumed trial begins anew.
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
        self._callbacks = [OwnCallback(entry) for entry in entries]
        self.notes = tuple(note for callback in self._callbacks for note in callback.notes)
        self._steps_per_epoch = steps_per_epoch
        self._arguments = training_arguments(options, device, getattr(config, "dtype", None))
        self._control = TrainerControl()
        self._state = TrainerState(
            max_steps=num_steps,
            num_train_epochs=math.ceil(num_steps / steps_per_epoch),
            train_batch_size=options.per_device_train_batch_size,
        )
        self._state.compute_steps(self._arguments, num_steps)
        self._given = {
            "model": AdapterView(parameters, config, device),
            "processing_class": copy.deepcopy(tokenizer),
            "optimizer": None,
            "lr_scheduler": None,
            "train_dataloader": None,
            "eval_dataloader": None,
        }
        self._step = 0  # the state's own may be changed by a callback
        self._has_begun = self._is_in_epoch = False
        self._losses_since_log: list[float] = []

    @property
    def is_epoch_end(self) -> bool:
        """Whether the step that was ended last is the last of an epoch, or of the trial."""
        is_boundary = self._step % self._steps_per_epoch == 0
        return self._is_in_epoch and (is_boundary or self._control.should_training_stop)

    def train_begin(self) -> None:
        """Begin the training, or go on with it after ``load_state``."""
        self._has_begun = True
        self._raise_event("on_init_end")
        self._control.should_training_stop = False
        self._raise_event("on_train_begin")

    def epoch_begin(self) -> None:
        self._is_in_epoch = True
        self._raise_event("on_epoch_begin")

    def step_begin(self) -> None:
        """Begin a step, and before it the training and the epoch if they have not begun."""
        if not self._has_begun:
            self.train_begin()
        if not self._is_in_epoch:
            self.epoch_begin()
        self._control.should_log = False
        self._control.should_evaluate = False
        self._control.should_save = False
        self._raise_event("on_step_begin")

    def pre_optimizer_step(self) -> None:
        """Say that gradients are clipped and the optimizer is about to step."""
        self._raise_event("on_pre_optimizer_step")

    def optimizer_step(self) -> None:
        """Say that the optimizer has stepped; gradients are still there."""
        self._raise_event("on_optimizer_step")

    def step_end(
        self, line: Mapping[str, Scalar], evaluation_due: bool = False, is_last: bool = False
    ) -> Wishes:
        """End a step, and log its line every ``logging_steps``; return the wishes after both.

        As in transformers the loss in a log is the mean since the log before.

        Args:
            line: The step's: its ``step``, ``epoch`` and ``loss`` are used.
            evaluation_due: Whether the schedule validates after this step.
            is_last: Whether the schedule ends with this step.
        """
        step, epoch, loss = line["step"], line["epoch"], line["loss"]
        assert isinstance(step, int)
        assert isinstance(epoch, float | int)
        assert isinstance(loss, float | int)
        self._step = self._state.global_step = step
        self._state.epoch = epoch
        self._losses_since_log.append(loss)
        # What transformers' DefaultFlowCallback does, before all others.
        control = self._control
        control.should_log |= step % self._state.logging_steps == 0
        control.should_evaluate |= evaluation_due
        control.should_save |= evaluation_due
        control.should_training_stop |= is_last
        self._raise_event("on_step_end")
        if self._control.should_log:
            mean = sum(self._losses_since_log) / len(self._losses_since_log)
            self._losses_since_log = []
            self.logged({**line, "loss": mean})
        return self._wishes

    def logged(self, logs: Mapping[str, Scalar]) -> Wishes:
        """Let the callbacks log a line, and record it in the state's history."""
        seen: dict[str, Any] = {name: logs[name] for name in logs if name != "step"}
        seen["epoch"] = self._state.epoch
        self._state.log_history.append({**seen, "step": self._state.global_step})
        self._control.should_log = False
        self._raise_event("on_log", logs=seen)
        return self._wishes

    def evaluated(self, metrics: Mapping[str, float]) -> Wishes:
        """Take in a validation: log it, tell the callbacks, then compare with the best so far.

        Callbacks find each metric under transformers' name for it, which begins with ``eval_``, and
        in ``on_evaluate`` under its name here as well.

        Raises:
            ValueError: ``metric_for_best_model`` is not among the metrics.
        """
        named = {_name_in_transformers(name): value for name, value in metrics.items()}
        self.logged(named)
        seen = {**metrics, **named, "epoch": self._state.epoch}
        self._control.should_evaluate = False
        self._raise_event("on_evaluate", metrics=seen)
        if self._step > 0:  # transformers does not count one before the first step
            self._compare_with_best(seen)
        return self._wishes

    def saved(self) -> Wishes:
        self._control.should_save = False
        self._raise_event("on_save")
        return self._wishes

    def epoch_end(self) -> Wishes:
        self._is_in_epoch = False
        self._raise_event("on_epoch_end")
        return self._wishes

    def train_end(self) -> None:
        """End the training, and before it the epoch if it has not ended."""
        if self._is_in_epoch:
            self.epoch_end()
        self._raise_event("on_train_end")

    def state(self) -> dict[str, object]:
        """Return what a resumed trial needs, as plain JSON.

        Raises:
            CallbackError: A callback's own ``state()`` failed or is no JSON.
        """
        return {
            "trainer_state": as_json("the TrainerState", dataclasses.asdict(self._state)),
            "control": self._control.state()["args"],
            "step": self._step,
            "callbacks": [callback.state() for callback in self._callbacks],
            "losses_since_log": list(self._losses_since_log),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Bring callbacks at their beginning to where the saved ones were.

        The training begins anew for them with the next step, as in transformers, and so does an
        epoch that had begun.
        """
        self._state = TrainerState(**copy.deepcopy(state["trainer_state"]))
        self._control = TrainerControl(**state["control"])
        self._step = state["step"]
        self._losses_since_log = list(state["losses_since_log"])
        for callback, exported in zip(self._callbacks, state["callbacks"], strict=True):
            callback.load_state(exported)

    @property
    def _wishes(self) -> Wishes:
        control = self._control
        return Wishes(
            stop=control.should_training_stop,
            evaluate=control.should_evaluate,
            save=control.should_save,
            log=control.should_log,
        )

    def _raise_event(self, event: str, **arguments: object) -> None:
        """Call the event of every callback; raise a CallbackError if one fails."""
        for callback in self._callbacks:
            self._control = callback.call(
                event, self._arguments, self._state, self._control, {**self._given, **arguments}
            )
            if self._control.should_epoch_stop:
                raise CallbackError(
                    f"callbacks: {callback.path!r} has set should_epoch_stop in {event}. An epoch "
                    f"cannot be cut short here: which examples a step takes follows from its number "
                    f"alone. Set should_training_stop to end the trial."
                )

    def _compare_with_best(self, metrics: Mapping[str, float]) -> None:
        """Keep the best metric as transformers' Trainer does, after the callbacks have compared."""
        name = _name_in_transformers(str(self._arguments.metric_for_best_model))
        if name not in metrics:
            raise ValueError(
                f"metric_for_best_model: {name!r} is not among the metrics of the validation. "
                f"Reported: {', '.join(sorted(metrics))}."
            )
        is_greater_better, best = self._arguments.greater_is_better, self._state.best_metric
        if best is None:
            best = -math.inf if is_greater_better else math.inf
            self._state.best_metric = best
        is_better = np.greater if is_greater_better else np.less
        if is_better(metrics[name], best):
            self._state.best_metric = metrics[name]
            self._state.best_global_step = self._state.global_step


def _name_in_transformers(name: str) -> str:
    is_prefixed = name.startswith("eval_") or name in _NOT_OF_VALIDATION
    return name if is_prefixed else f"eval_{name}"
