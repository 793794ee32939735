"""What a trial of the Trainer tells while it trains, and where its best adapter is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from events import Events
from workload import Workload

Report = Callable[[int, float], bool]
"""From a validation's index, from 1, and its loss to whether the trial is to stop."""


@dataclass
class Progress(TrainerCallback):
    """Says what a trial does, keeps its best adapter, and asks whether it is to stop.

    Attributes:
        number: The trial's.
        report: Asked after every validation.
    """

    workload: Workload
    out: Path
    number: int
    report: Report = lambda index, loss: False
    best: float = math.inf

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        Events(self.out).step(self.number, state.global_step)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        loss, index = given["metrics"]["eval_loss"], state.global_step // self.workload.eval_steps
        Events(self.out).validation(self.number, state.global_step, loss)
        if loss < self.best:
            self.best = loss
            given["model"].save_pretrained(str(adapter_folder(self.out, self.number)))
        stop = self.report(index, loss)
        if stop or index >= self.workload.num_validations(self.number):
            control.should_training_stop = True


def adapter_folder(out: Path, number: int) -> Path:
    """Return where a trial's best adapter is kept."""
    return out / "adapters" / str(number)
