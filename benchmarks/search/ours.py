"""The search as a study of `hpo`, and what its trainer and pruner need for it to be measured."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from benchmarks.search.workload import BATCH_SIZES, LEARNING_RATES, RANKS, Workload
from trainers.lora import LoraTrainer
from trainers.protocol import Report

STUDY = "bench"
VALIDATION = "validation.json"
"""Beside the study's file: only the rows that all validate on. We would draw some."""

EVENTS = "HPO_BENCH_EVENTS"
"""Names the file of events in the environment; Ray's processes inherit it."""


def study_file(workload: Workload) -> Mapping[str, object]:
    """Return the study; relative paths are those of its folder."""
    space: dict[str, object] = {
        "learning_rate": {
            "type": "float",
            "low": LEARNING_RATES[0],
            "high": LEARNING_RATES[1],
            "log": True,
        },
        "lora_r": {"type": "categorical", "choices": list(RANKS)},
        "lora_alpha": {"value": "2 * lora_r"},
        "per_device_train_batch_size": {"type": "categorical", "choices": list(BATCH_SIZES)},
    }
    pruner: dict[str, object] = {
        "type": "asha",
        "min_resource": 1,
        "reduction_factor": workload.reduction_factor,
    }
    num_given = workload.num_initial
    if workload.scripted:
        space["seed"] = {"type": "int", "low": 0, "high": workload.num_trials}
        pruner = {"type": "benchmarks.search.ours:Scripted", "courses": list(workload.courses())}
        num_given = workload.num_trials
    given = []
    for number, config in enumerate(workload.configs()[:num_given]):
        point = {**config, "per_device_train_batch_size": config["batch_size"]}
        del point["batch_size"]
        given.append({**point, "seed": number} if workload.scripted else point)
    return {
        "study": STUDY,
        "metric": "eval_loss",
        "direction": "minimize",
        "storage": "sqlite:///hpo.db",
        "output_dir": "runs",
        "trainer": "benchmarks.search.ours:TimedTrainer",
        "fixed": {
            "model_name_or_path": str(workload.model),
            "train_file": str(workload.data / "train.json"),
            "validation_file": VALIDATION,
            "train_sampling_strategy": "sequential",
            "max_length": workload.max_length,
            "max_steps": workload.max_steps,
            "eval_steps": workload.eval_steps,
            "dtype": workload.dtype,
        },
        "space": space,
        "enqueue": given,
        "sampler": {"type": "tpe", "seed": workload.seed},
        "pruner": pruner,
        "resources": {
            "gpu": 1 / workload.concurrency,
            "cpu_hosts": max(1, len(os.sched_getaffinity(0)) // workload.threads),
        },
        "budget": {"trials": workload.num_trials},
    }


class Scripted(optuna.pruners.BasePruner):
    """Stops each trial after the validation that its script says."""

    def __init__(self, courses: Sequence[int]) -> None:
        self._courses = courses

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial has done what it is to do."""
        return (trial.last_step or 0) >= self._courses[trial.number]


class TimedTrainer(LoraTrainer):
    """The trainer of LoRA, which says when it does what, as the peers do."""

    def __init__(self, fixed: Mapping[str, object], device: str = "auto") -> None:
        super().__init__(fixed, device)
        self._steps: dict[int, int] = {}
        self._write("search_begin")  # the model is loaded

    def add(
        self, trial: int, options: Mapping[str, object], resume_from: Path | None = None
    ) -> None:
        self._write("begin", trial=trial, step=0)
        super().add(trial, options, resume_from)
        self._steps[trial] = 0

    def advance(self) -> list[Report]:
        reports = super().advance()
        for trial, before in self._steps.items():
            step = self.step(trial)
            if step > before:
                self._write("step", trial=trial, step=step)
                self._steps[trial] = step
        for report in reports:
            if "eval_loss" in report.metrics:
                loss = report.metrics["eval_loss"]
                self._write("validation", trial=report.trial, step=report.step, loss=loss)
        return reports

    def remove(self, trial: int) -> None:
        super().remove(trial)
        del self._steps[trial]
        self._write("end", trial=trial)

    def _write(self, kind: str, **values: object) -> None:
        line = json.dumps({"t": time.time(), "kind": kind, **values}) + "\n"
        with Path(os.environ[EVENTS]).open("a", encoding="utf-8") as file:
            file.write(line)
