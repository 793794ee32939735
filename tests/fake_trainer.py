"""A trainer without torch: exact, instant, and able to misbehave. Its journal tells what it trained."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from trainers.protocol import (
    ADAPTER_FOLDER,
    STATE_FOLDER,
    Capacity,
    EndReason,
    Plan,
    Report,
    TrainerOptions,
)


class FakeOptions(TrainerOptions):
    """Options of a curve instead of a model."""

    base: str = "base"
    x: float = Field(0.5, ge=-10, le=10)
    y: int = 1
    kind: str = "a"
    max_steps: int = Field(9, ge=1)
    eval_steps: int = Field(1, ge=1)
    step_s: float = 0.0
    journal: str = ""
    diverge_above: float = 100.0
    fail_above: float = 100.0
    acts: Literal["", "raise", "crash", "kill", "hang", "freeze"] = Field(
        "", description="What its host suffers by it, at its step `acts_at`."
    )
    acts_at: int = 3
    acts_once: str = Field(
        "", description="A file: there since it has acted; then it does no more."
    )
    kill_once: str = Field("", description="A file: there since a process with several was killed.")
    overfit: float = 0.0
    full_at: int = 0
    do_eval: bool = True
    extra_metrics: list[str] = Field([], description="More metrics: exact_match, bleu.")
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    note: str = ""
    answers: bool = False
    memory: float = math.inf
    size: float = 1.0
    hidden_size: float = Field(0.0, description="Memory that only shows when it is trained.")
    hidden_until: int = Field(0, description="Steps that it is trained without showing it.")
    alone: bool = False

    shared: ClassVar[frozenset[str]] = frozenset({"base", "journal", "memory"})
    paths: ClassVar[frozenset[str]] = frozenset({"journal"})
    aliases: ClassVar[Mapping[str, str]] = {"ex": "x"}
    budget: ClassVar[frozenset[str]] = frozenset({"max_steps", "eval_steps"})

    def num_validations(self) -> int:
        return math.ceil(self.max_steps / self.eval_steps)

    def metric_names(self) -> frozenset[str]:
        if not self.do_eval:
            return frozenset({"train_loss", "epoch"})
        return frozenset({"eval_loss", "score", *self.extra_metrics})

    def pruning_problem(self) -> str | None:
        return None if self.do_eval else "do_eval: false leaves nothing to compare."

    def sharing_problem(self) -> str | None:
        return "alone: true wants its base for itself" if self.alone else None

    @classmethod
    def for_metric(
        cls, given: Mapping[str, object], metric: str, direction: Literal["minimize", "maximize"]
    ) -> dict[str, object]:
        completed = {"greater_is_better": direction == "maximize", "metric_for_best_model": metric}
        return {**completed, **given} if metric == "score" else dict(given)

    @field_validator("extra_metrics")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        if unknown := set(value) - {"exact_match", "bleu"}:
            raise ValueError(f"unknown metrics {unknown}")
        return value


@dataclass
class _Trial:
    options: FakeOptions
    step: int = 0
    weight: float = 0.0
    validations: int = 0
    ended: bool = False
    noted: bool = False
    lines: list[dict[str, float]] = field(default_factory=list)

    @property
    def size(self) -> float:
        shows = self.step >= self.options.hidden_until
        return self.options.size + (self.options.hidden_size if shows else 0.0)


class FakeTrainer:
    """Each step moves a weight towards x; the loss is a function of weight and step alone."""

    Options = FakeOptions

    def __init__(self, fixed: Mapping[str, object], device: str) -> None:
        if fixed.get("base") == "deadly":
            print("terminate called after throwing 'no such device'", file=sys.stderr, flush=True)
            os.abort()
        if fixed.get("base") == "slow":
            time.sleep(120)
        if fixed.get("base") == "missing":
            raise ValueError("the model 'missing' cannot be loaded: no such folder. Give another.")
        self.device = device
        self._memory = FakeOptions.model_validate(dict(fixed)).memory
        self._full_at: int | None = None
        self._trials: dict[int, _Trial] = {}

    def plan(self, options: Mapping[str, object]) -> Plan:
        checked = FakeOptions.model_validate(options)
        return Plan(100, 10, checked.max_steps, checked.num_validations(), 1)

    def add(
        self, trial: int, options: Mapping[str, object], resume_from: Path | None = None
    ) -> None:
        assert trial not in self._trials
        state = _Trial(FakeOptions.model_validate(options))
        if resume_from is not None:
            saved = json.loads((resume_from / STATE_FOLDER / "state.json").read_text())
            state.step, state.weight = saved["step"], saved["weight"]
            state.validations = saved["validations"]
        self._trials[trial] = state
        self._note(state, trial, "add")

    def fits(self, options: Mapping[str, object]) -> bool:
        if not self._trials:
            return True
        if self._full_at is not None and len(self._trials) + 1 >= self._full_at:
            return False
        known = sum(trial.options.size for trial in self._trials.values())
        return known + FakeOptions.model_validate(options).size <= self._memory

    def capacity(self, configs: Sequence[Mapping[str, object]]) -> Capacity:
        if self._trials:
            raise ValueError("trials are present")
        sizes = [FakeOptions.model_validate(config).size for config in configs]
        largest = max((size for size in sizes if size <= self._memory), default=self._memory)
        count = 64 if self._memory == math.inf else int(self._memory / largest)
        return Capacity(count, 0.0, largest, self._memory)

    def advance(self) -> list[Report]:
        reports = self._make_room()
        for number, trial in self._trials.items():
            if not trial.ended:
                report = self._step(number, trial)
                if report is not None:
                    trial.ended = report.end is not None
                    reports.append(report)
        return reports

    def _make_room(self) -> list[Report]:
        """End what does not fit: the youngest, who is displaced, or the only one."""
        reports = []
        while True:
            live = {n: trial for n, trial in self._trials.items() if not trial.ended}
            used = sum(trial.size for trial in live.values())
            if used <= self._memory or not live:
                return reports
            self._full_at = len(live)
            number, youngest = list(live.items())[-1]
            youngest.ended = True
            end: EndReason = "displaced" if len(live) > 1 else "out_of_memory"
            said = f"out of memory: {used:g} of {self._memory:g}"
            step = youngest.step
            reports.append(Report(number, youngest.validations, step, end=end, message=said))

    def _step(self, number: int, trial: _Trial) -> Report | None:
        options = trial.options
        time.sleep(options.step_s)
        if options.kill_once and not Path(options.kill_once).exists():
            steps = [other.step for other in self._trials.values()]
            if len(steps) > 1 and min(steps) >= 3:  # each has a checkpoint to go on from
                Path(options.kill_once).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if trial.step >= 4:
                return None  # waits for another to be killed with
        self._act(options, trial.step + 1)
        trial.step += 1
        trial.weight += (options.x - trial.weight) / 2
        self._note(trial, number, "step")
        loss = (trial.weight - 0.3) ** 2 + 1.0 / trial.step + options.overfit * trial.step
        trial.lines.append({"step": trial.step, "loss": loss})
        if options.x > options.diverge_above:
            return Report(
                number, trial.validations, trial.step, end="diverged", message="loss is nan"
            )
        if options.x > options.fail_above:
            return Report(number, trial.validations, trial.step, end="failed", message="it broke")
        done = trial.step >= options.max_steps
        if not done and trial.step % options.eval_steps:
            return None
        trial.validations += 1
        lines, trial.lines = trial.lines, []
        metrics = {"eval_loss": loss, "score": -loss}
        if not options.do_eval:
            metrics = {"train_loss": loss, "epoch": trial.step / 10}
        answer = {"prompt": "2 + 2 =", "expected": "4", "generated": f"about {loss:.3f}"}
        notes = [options.note] if options.note and not trial.noted else []
        trial.noted = True
        return Report(
            number,
            trial.validations,
            trial.step,
            metrics,
            lines,
            samples=[answer] if options.answers else [],
            notes=notes,
            end="finished" if done else None,
        )

    def _act(self, options: FakeOptions, step: int) -> None:
        if not options.acts or step < options.acts_at:
            return
        if options.acts_once:
            if Path(options.acts_once).exists():
                return
            Path(options.acts_once).touch()
        if options.acts == "raise":
            raise RuntimeError("the trainer's own mistake")
        if options.acts == "crash":
            os.abort()
        if options.acts == "hang":
            threading.Event().wait()
        os.kill(os.getpid(), signal.SIGKILL if options.acts == "kill" else signal.SIGSTOP)

    def step(self, trial: int) -> int:
        return self._trials[trial].step

    def remove(self, trial: int) -> None:
        del self._trials[trial]
        if not self._trials:
            self._full_at = None

    def save(self, trial: int, folder: Path) -> None:
        state = self._trials[trial]
        if state.step == state.options.full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        (folder / ADAPTER_FOLDER).mkdir()
        (folder / ADAPTER_FOLDER / "weight.json").write_text(json.dumps(state.weight))
        (folder / STATE_FOLDER).mkdir()
        saved = {"step": state.step, "weight": state.weight, "validations": state.validations}
        (folder / STATE_FOLDER / "state.json").write_text(json.dumps(saved))

    def evaluate(
        self, options: Mapping[str, object], adapter: Path | None = None
    ) -> Mapping[str, float]:
        weight = json.loads((adapter / "weight.json").read_text()) if adapter else 0.0
        return {"eval_loss": (weight - 0.3) ** 2}

    @classmethod
    def merge(cls, options: Mapping[str, object], adapter: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.json").write_text((adapter / "weight.json").read_text())

    def _note(self, trial: _Trial, number: int, what: str) -> None:
        if trial.options.journal:
            line = {
                "what": what,
                "trial": number,
                "step": trial.step,
                "pid": os.getpid(),
                "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
                "threads": os.environ.get("OMP_NUM_THREADS"),
            }
            with open(trial.options.journal, "a") as file:
                file.write(json.dumps(line) + "\n")
