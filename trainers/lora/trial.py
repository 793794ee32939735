"""One trial on a trainer: its adapter's weights, its optimizer, and how far it is.

Knows no other trial and no model: it is given gradients and metrics, and answers with reports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from trainers.lora.learning_rate import LearningRate
from trainers.lora.optimizer import make_optimizer, set_learning_rate
from trainers.lora.options import LoraOptions
from trainers.lora.order import DataOrder
from trainers.lora.schedule import Schedule
from trainers.lora.weights import Parameters
from trainers.protocol import EndReason, Report, StepLine


@dataclass
class Progress:
    """How far a trial is: all of its state that is no tensor.

    Attributes:
        step: Optimizer steps done.
        validation: Index of the newest validation, from 1; 0 before the first.
        end: Why the trial is over; None while it goes on.
        message: More about the end.
        best_eval_loss: The lowest so far that early stopping counted; None before the first.
        num_validations_without_gain: In a row, for early stopping.
        step_lines: Since the newest report.
        history: Every validation so far: its index, its step and its metrics.
    """

    step: int = 0
    validation: int = 0
    end: EndReason | None = None
    message: str | None = None
    best_eval_loss: float | None = None
    num_validations_without_gain: int = 0
    step_lines: list[StepLine] = field(default_factory=list)
    history: list[dict[str, object]] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        return asdict(self)


class Trial:
    """One trial, stepped from outside.

    Attributes:
        key: The caller's number for it.
        options: Its whole config.
        order: Which examples it sees at which step.
        schedule: How long it trains, and when it validates.
        learning_rate: At each step.
        parameters: Its adapter's weights, by name.
        optimizer: Over these weights, in their order.
        scaler: Scales the loss in float16, whose range gradients underflow; else None.
        progress: How far it is.
    """

    def __init__(
        self,
        key: int,
        options: LoraOptions,
        order: DataOrder,
        schedule: Schedule,
        learning_rate: LearningRate,
        parameters: Parameters,
        max_loss: float,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.key = key
        self.options = options
        self.order = order
        self.schedule = schedule
        self.learning_rate = learning_rate
        self.parameters = parameters
        self.optimizer = make_optimizer(options, parameters)
        self.scaler = scaler
        self.progress = Progress()
        self._max_loss = max_loss

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    @property
    def is_validation_due(self) -> bool:
        return self.step in self.schedule.validation_steps

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one pass's loss to the trial's weights."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()

    def update(self, loss: float, num_tokens: int, seconds: float) -> Report | None:
        """Finish a step whose gradients are in place; return a report if the trial diverged."""
        learning_rate = self.learning_rate.at(self.step + 1)
        if not loss <= self._max_loss:
            return self._diverge(f"training loss {loss:.6g}", learning_rate)
        set_learning_rate(self.optimizer, learning_rate)
        grad_norm = self._clip()
        if self.scaler is not None:  # leaves out a step whose scaled gradients overflowed
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif math.isfinite(grad_norm):
            self.optimizer.step()
        else:
            return self._diverge(f"gradient norm {grad_norm}", learning_rate)
        self.optimizer.zero_grad()
        self.progress.step += 1
        line: StepLine = {
            "step": self.step,
            "epoch": self.schedule.epoch(self.step),
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "tokens_per_second": num_tokens / seconds,
            "seconds": seconds,
        }
        self.progress.step_lines.append(line)
        return None

    def validated(self, metrics: Mapping[str, float]) -> Report:
        """Take in a validation's metrics; return the report, with the trial's end if it is one."""
        eval_loss = metrics["eval_loss"]
        if not eval_loss <= self._max_loss:
            rate = self.learning_rate.at(self.step)
            return self._diverge(f"validation loss {eval_loss:.6g}", rate)
        self.learning_rate.observe(eval_loss)
        metrics = {**metrics, "epoch": self.schedule.epoch(self.step)}
        self.progress.validation += 1
        self.progress.history.append(
            {"validation": self.progress.validation, "step": self.step, "metrics": metrics}
        )
        if self._is_out_of_patience(eval_loss):
            self.progress.end = "stopped_early"
            self.progress.message = (
                f"no better eval_loss in {self.progress.num_validations_without_gain} validations"
            )
        if self.step == self.schedule.num_steps:
            self.progress.end, self.progress.message = "finished", None
        return self._report(metrics)

    def fail(self, message: str) -> Report:
        """End the trial by an error."""
        self.progress.end, self.progress.message = "failed", message
        return self._report({})

    def repeat_end(self) -> Report:
        """Return again the report that ended the trial, for one that was resumed after its end."""
        history = self.progress.history
        metrics = history[-1]["metrics"] if history else {}
        assert isinstance(metrics, Mapping)
        ended_well = self.progress.end in ("finished", "stopped_early")
        return self._report(metrics if ended_well else {})

    def _clip(self) -> float:
        """Clip the gradient to the trial's norm; return the norm it had."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        limit = self.options.max_grad_norm or math.inf
        return torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit).item()

    def _is_out_of_patience(self, eval_loss: float) -> bool:
        progress, best = self.progress, self.progress.best_eval_loss
        if best is None or eval_loss < best - self.options.early_stopping_threshold:
            progress.best_eval_loss = eval_loss
            progress.num_validations_without_gain = 0
        else:
            progress.num_validations_without_gain += 1
        patience = self.options.early_stopping_patience
        return patience is not None and progress.num_validations_without_gain >= patience

    def _diverge(self, what: str, learning_rate: float) -> Report:
        self.progress.end = "diverged"
        self.progress.message = (
            f"{what} after {self.step} steps (limit {self._max_loss:.6g}, learning rate "
            f"{learning_rate:.3g})"
        )
        return self._report({})

    def _report(self, metrics: Mapping[str, float]) -> Report:
        lines, self.progress.step_lines = self.progress.step_lines, []
        return Report(
            trial=self.key,
            validation=self.progress.validation,
            step=self.step,
            metrics=metrics,
            step_lines=tuple(lines),
            end=self.progress.end,
            message=self.progress.message,
        )
