"""A trainer that computes nothing: what is left of a search is what the search itself costs.

Named ``benchmarks.driver.fake:FakeTrainer``. Its journal has a line for each event of a trial.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from trainers.protocol import (
    ADAPTER_FOLDER,
    STATE_FOLDER,
    Capacity,
    EndReason,
    Plan,
    Report,
    TrainerOptions,
)

NAME = "benchmarks.driver.fake:FakeTrainer"


class FakeOptions(TrainerOptions):
    """A trial's length, and what it costs."""

    x: float = Field(0.5, ge=-10, le=10, description="Its distance from 0.3 is the loss.")
    y: int = 1
    max_steps: int = Field(10, ge=1, description="Each of them ends with a validation.")
    step_s: float = Field(0.0, ge=0, description="Seconds that a step sleeps.")
    journal: str = Field("", description="A file: gets when a trial was added, stepped, removed.")

    shared: ClassVar[frozenset[str]] = frozenset({"journal"})
    budget: ClassVar[frozenset[str]] = frozenset({"max_steps"})

    def num_validations(self) -> int:
        """Return one for each step."""
        return self.max_steps

    def metric_names(self) -> frozenset[str]:
        """Return the loss alone."""
        return frozenset({"eval_loss"})


@dataclass
class _Trial:
    options: FakeOptions
    step: int = 0
    ended: bool = False


class FakeTrainer:
    """Its trials step together, each for ``step_s`` seconds at the same time."""

    Options = FakeOptions

    def __init__(self, fixed: Mapping[str, object], device: str) -> None:
        """Load nothing."""
        self._trials: dict[int, _Trial] = {}
        self._journal = str(fixed.get("journal", ""))
        self._note("loaded", -1, 0)

    def plan(self, options: Mapping[str, object]) -> Plan:
        """Return what the options say."""
        checked = FakeOptions.model_validate(options)
        return Plan(1, 1, checked.max_steps, checked.num_validations(), 1)

    def add(
        self, trial: int, options: Mapping[str, object], resume_from: Path | None = None
    ) -> None:
        """Begin a trial, or go on with one."""
        state = _Trial(FakeOptions.model_validate(options))
        if resume_from is not None:
            saved = json.loads((resume_from / STATE_FOLDER / "state.json").read_text())
            state.step = saved["step"]
        self._trials[trial] = state
        self._note("added", trial, state.step)

    def fits(self, options: Mapping[str, object]) -> bool:
        """Return True."""
        return True

    def capacity(self, configs: Sequence[Mapping[str, object]]) -> Capacity:
        """Return more than anybody asks for."""
        return Capacity(64)

    def advance(self) -> list[Report]:
        """Step every trial that has not ended."""
        live = {number: trial for number, trial in self._trials.items() if not trial.ended}
        time.sleep(max((trial.options.step_s for trial in live.values()), default=0.0))
        return [self._step(number, trial) for number, trial in live.items()]

    def _step(self, number: int, trial: _Trial) -> Report:
        options = trial.options
        trial.step += 1
        trial.ended = trial.step >= options.max_steps
        self._note("ended" if trial.ended else "stepped", number, trial.step)
        loss = (options.x - 0.3) ** 2 + 1.0 / trial.step
        end: EndReason | None = "finished" if trial.ended else None
        return Report(number, trial.step, trial.step, {"eval_loss": loss}, end=end)

    def step(self, trial: int) -> int:
        """Return the steps that a trial has done."""
        return self._trials[trial].step

    def remove(self, trial: int) -> None:
        """Let a trial leave."""
        self._note("removed", trial, self._trials.pop(trial).step)

    def save(self, trial: int, folder: Path) -> None:
        """Write a trial's step."""
        for name in (ADAPTER_FOLDER, STATE_FOLDER):
            (folder / name).mkdir()
        saved = {"step": self._trials[trial].step}
        (folder / STATE_FOLDER / "state.json").write_text(json.dumps(saved))

    def evaluate(
        self, options: Mapping[str, object], adapter: Path | None = None
    ) -> Mapping[str, float]:
        """Return a loss."""
        return {"eval_loss": 1.0}

    @classmethod
    def merge(cls, options: Mapping[str, object], adapter: Path, folder: Path) -> None:
        """Write an empty folder."""
        folder.mkdir()

    def _note(self, what: str, trial: int, step: int) -> None:
        if self._journal:
            line = {
                "what": what,
                "trial": trial,
                "step": step,
                "host": os.getpid(),
                "at": time.time(),
            }
            with Path(self._journal).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
