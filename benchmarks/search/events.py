"""What happened in a search, out of the lines that every contestant writes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Course:
    """A search by its events.

    Attributes:
        started: When its command was started, by the clock.
        lines: Its events, by time.
    """

    started: float
    lines: Sequence[dict[str, Any]]

    @classmethod
    def read(cls, path: Path, started: float) -> Course:
        """Read a file of events; none is a search in which nothing happened."""
        if not path.exists():
            return cls(started, ())
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return cls(started, sorted(lines, key=lambda line: line["t"]))

    @property
    def num_trials(self) -> int:
        """Trials that made a step."""
        return len({line["trial"] for line in self._of("step")})

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all trials."""
        return len(self._of("step"))

    @property
    def num_validations(self) -> int:
        """Of all trials."""
        return len(self._of("validation"))

    @property
    def best_loss(self) -> float:
        """The least of all validations; NaN if there was none."""
        losses = [line["loss"] for line in self._of("validation") if math.isfinite(line["loss"])]
        return min(losses, default=math.nan)

    @property
    def warm(self) -> tuple[float, float]:
        """When the first trial began and the last event of one was, by the clock: no start-up, no end."""
        times = [line["t"] for line in self.lines if "trial" in line]
        return (times[0], times[-1]) if times else (math.nan, math.nan)

    @property
    def warm_s(self) -> float:
        """Seconds of that."""
        began, ended = self.warm
        return ended - began

    @property
    def first_step_s(self) -> float:
        """From the start of the command until a step was done."""
        steps = self._of("step")
        return steps[0]["t"] - self.started if steps else math.nan

    def seconds_to(self, loss: float) -> float:
        """Return when a validation first was at most this loss, from the start; infinite: never."""
        for line in self._of("validation"):
            if line["loss"] <= loss:
                return float(line["t"]) - self.started
        return math.inf

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == kind]
