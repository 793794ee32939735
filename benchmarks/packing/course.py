"""A trial's course: the losses, gradient norms and validations that it went through."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from trainers.protocol import Report, Scalar

TIMES = ("_runtime", "_per_second")
"""How the names of metrics end that say how fast the machine is."""


@dataclass
class Course:
    """What a trial's reports said, as far as it depends on the trial alone: no times, no memory.

    Attributes:
        steps: Loss and gradient norm of each step.
        validations: Metrics of each.
        end: Why it ended, and what it said of that.
    """

    steps: dict[int, tuple[Scalar, Scalar]] = field(default_factory=dict)
    validations: dict[int, dict[str, float]] = field(default_factory=dict)
    end: tuple[str | None, str | None] = (None, None)

    def add(self, report: Report) -> None:
        """Take in one report."""
        for line in report.step_lines:
            if "loss" in line:
                self.steps[int(line["step"] or 0)] = (line["loss"], line["grad_norm"])
        if report.metrics:
            self.validations[report.validation] = {
                name: value for name, value in report.metrics.items() if not name.endswith(TIMES)
            }
        self.end = (report.end, report.message)

    def difference(self, other: Course) -> float:
        """Return the largest relative difference of a number here to that there.

        0 only if they are bit-equal; infinite if one went further or ended otherwise.
        """
        if self == other:
            return 0.0
        mine, theirs = self._numbers(), other._numbers()
        if mine.keys() != theirs.keys() or self.end[0] != other.end[0]:
            return math.inf
        return max(_relative(mine[key], theirs[key]) for key in mine)

    def _numbers(self) -> dict[tuple[str, int, str], float]:
        numbers = {}
        for step, (loss, norm) in self.steps.items():
            numbers["step", step, "loss"] = float(loss if loss is not None else math.nan)
            numbers["step", step, "grad_norm"] = float(norm if norm is not None else math.nan)
        for validation, metrics in self.validations.items():
            for name, value in metrics.items():
                numbers["validation", validation, name] = value
        return numbers


def _relative(value: float, reference: float) -> float:
    if value == reference or (math.isnan(value) and math.isnan(reference)):
        return 0.0
    if not (math.isfinite(value) and math.isfinite(reference)):
        return math.inf
    return abs(value - reference) / max(abs(reference), 1e-30)
