"""How far a trial is: all of its state that is no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trainers.protocol import EndReason, StepLine


@dataclass
class Progress:
    """All of a trial's state that is no tensor.

    Attributes:
        step: Optimizer steps done.
        seconds: What its steps and validations took.
        grad_norms: Of the newest steps, to notice a jump.
        validation: Index of the newest validation, from 1; 0 before the first.
        end: Why the trial is over; None while it goes on.
        message: More about the end.
        best_metric: The best so far of the metric that trials are judged by; None before the first.
        best_counted: The same, of the gains that early stopping counted.
        num_validations_without_gain: In a row, for early stopping.
        step_lines: Since the newest report.
        history: Every validation so far: its index, its step and its metrics.
    """

    step: int = 0
    seconds: float = 0.0
    grad_norms: list[float] = field(default_factory=list)
    validation: int = 0
    end: EndReason | None = None
    message: str | None = None
    best_metric: float | None = None
    best_counted: float | None = None
    num_validations_without_gain: int = 0
    step_lines: list[StepLine] = field(default_factory=list)
    history: list[dict[str, object]] = field(default_factory=list)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Progress:
        """Return what ``as_json`` gave, also of the version that only knew eval_loss."""
        names = {"best_eval_loss": "best_counted"}
        return cls(**{names.get(name, name): value for name, value in saved.items()})

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    @property
    def validated_step(self) -> int:
        """The step of the newest validation; 0 before the first."""
        step = self.history[-1]["step"] if self.history else 0
        assert isinstance(step, int)
        return step

    @property
    def train_loss(self) -> float:
        """The mean loss of the steps since the newest report."""
        losses = [line["loss"] for line in self.step_lines if "loss" in line]
        return sum(float(loss or 0.0) for loss in losses) / max(len(losses), 1)

    def take_over_validation(self, earlier: Progress, seconds: float) -> None:
        """Take over what a validation changed in this trial's progress as it was at an earlier step.

        Args:
            earlier: The progress at that step, with the validation taken in.
            seconds: What the validation took.
        """
        self.seconds += seconds
        self.validation = earlier.validation
        self.best_metric = earlier.best_metric
        self.best_counted = earlier.best_counted
        self.num_validations_without_gain = earlier.num_validations_without_gain
        self.history = list(earlier.history)
        self.step_lines = [
            line for line in self.step_lines if int(line["step"] or 0) > earlier.step
        ]
