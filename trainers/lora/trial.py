"""One trial on a trainer: its adapter's weights, its optimizer, and how far it is.

Knows no other trial and no model: it is given gradients and metrics, and answers with reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from trainers.lora.callbacks.trial_callbacks import TrialCallbacks
from trainers.lora.data.order import DataOrder
from trainers.lora.learning_rate import LearningRate
from trainers.lora.model.weights import Parameters
from trainers.lora.optimizer import make_optimizer, set_learning_rate
from trainers.lora.options import LoraOptions
from trainers.lora.progress import Progress
from trainers.lora.schedule import Schedule
from trainers.lora.step_log import NUM_NORMS, is_jump
from trainers.lora.validation.results import Results
from trainers.protocol import EndReason, Report, Scalar, StepLine


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
        max_loss: A loss above it has diverged.
        best_weights: Of its best validation, if it is to end with them.
        results: What was computed with its weights as they are.
        callbacks: The user's own, if any.
        notes: Said with its next report.
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
        where: Callable[[Sequence[int]], Sequence[str]],
        scaler: torch.amp.GradScaler | None = None,
        callbacks: TrialCallbacks | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Make a trial at its beginning.

        Args:
            where: Names the places in the data files that training examples come from.
        """
        self.key = key
        self.options = options
        self.order = order
        self.schedule = schedule
        self.learning_rate = learning_rate
        self.parameters = parameters
        self.optimizer = make_optimizer(options, parameters)
        self.scaler = scaler
        self.progress = Progress()
        self.max_loss = max_loss
        self.best_weights: dict[str, Tensor] | None = None
        self.results = Results()
        self.callbacks = callbacks
        self.notes = tuple(notes)
        self._where = where

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    @property
    def is_last_step_done(self) -> bool:
        return self.step >= self.schedule.num_steps

    @property
    def is_out_of_time(self) -> bool:
        minutes = self.options.max_train_minutes
        return minutes is not None and self.progress.seconds > 60 * minutes

    @property
    def is_validation_due(self) -> bool:
        """Whether the schedule or the time limit asks for a validation that has not been made."""
        is_asked = self.step in self.schedule.validation_steps or self.is_out_of_time
        return is_asked and self.step > self.progress.validated_step

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before going back."""
        if self.scaler is None:
            return 1.0
        device = next(iter(self.parameters.values())).device
        scaled: Tensor = self.scaler.scale(torch.ones((), device=device))
        return scaled.item()

    def update(
        self, loss: float, num_tokens: int, seconds: float, measured: Mapping[str, Scalar]
    ) -> Report | None:
        """Finish a step whose gradients are in place; return a report if the trial diverged.

        Args:
            loss: Nats per target.
            num_tokens: That went through the model.
            seconds: That the step took.
            measured: More for the step's line.
        """
        self.progress.seconds += seconds
        learning_rate = self.learning_rate.at(self.step + 1)
        if not loss <= self.max_loss:
            return self.diverge(f"training loss {loss:.6g}", self.step + 1)
        set_learning_rate(self.optimizer, learning_rate)
        grad_norm = self._clip()
        if self.scaler is None and not math.isfinite(grad_norm):
            return self.diverge(f"gradient norm {grad_norm}", self.step + 1)
        self._optimize()
        self.progress.step += 1
        line: dict[str, Scalar] = {
            "step": self.step,
            "epoch": self.schedule.epoch(self.step),
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "tokens_per_second": num_tokens / seconds,
            "seconds": seconds,
            **measured,
        }
        norms = self.progress.grad_norms
        if is_jump(grad_norm, norms, self.options.grad_norm_jump):
            line["samples"] = self._rows(self.step)
        if math.isfinite(grad_norm):
            self.progress.grad_norms = [*norms, grad_norm][-NUM_NORMS:]
        self.progress.step_lines.append(line)
        return None

    def log_validation(self, metrics: Mapping[str, float]) -> StepLine:
        """Add a line for a validation that is no report; return it."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        epoch = self.schedule.epoch(self.step)
        line: StepLine = {"step": self.step, "epoch": epoch, "extra_validation": True, **finite}
        self.progress.step_lines.append(line)
        return line

    def end(self, reason: EndReason, message: str | None = None) -> None:
        """Let no further step be done."""
        self.progress.end, self.progress.message = reason, message

    def report_validation(
        self, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Scalar]] = ()
    ) -> Report:
        """Count a validation, and return its report, with the trial's end if it has one."""
        self.progress.validation += 1
        self.progress.history.append(
            {"validation": self.progress.validation, "step": self.step, "metrics": dict(metrics)}
        )
        return self._report(metrics, samples)

    def fail(self, message: str, reason: EndReason = "failed") -> Report:
        """End the trial by an error."""
        self.end(reason, message)
        return self._report({})

    def diverge(self, what: str, step: int) -> Report:
        """End the trial because of its loss or gradient at ``step``."""
        message = (
            f"{what} after {self.step} steps (limit {self.max_loss:.6g}, learning rate "
            f"{self.learning_rate.at(step):.3g})"
        )
        if step > self.step:
            message += f"; rows of step {step}: {self._rows(step)}"
        self.end("diverged", message)
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

    def _optimize(self) -> None:
        """Change the weights by their gradients."""
        if self.callbacks is not None:
            self.callbacks.pre_optimizer_step()
        if self.scaler is not None:  # leaves out a step whose scaled gradients overflowed
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.results.clear()
        if self.callbacks is not None:
            self.callbacks.optimizer_step()
        self.optimizer.zero_grad()

    def _rows(self, step: int) -> str:
        """Return where the examples of a step come from."""
        rows = [row for rows in self.order.micro_batches(step) for row in rows]
        return ", ".join(self._where(rows))

    def _report(
        self, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Scalar]] = ()
    ) -> Report:
        lines, self.progress.step_lines = self.progress.step_lines, []
        notes, self.notes = self.notes, ()
        return Report(
            trial=self.key,
            validation=self.progress.validation,
            step=self.step,
            metrics=metrics,
            step_lines=tuple(lines),
            samples=tuple(samples),
            notes=notes,
            end=self.progress.end,
            message=self.progress.message,
        )
