"""The search that all contestants do: what ``benchmarks/peers/workload.py`` reads."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

NUM_VALIDATIONS = 4
"""Of a trial that is never stopped."""

COURSES = (1,) * 9 + (3,) * 4 + (4,) * 3
"""After which validation each of 16 trials stops where the verdicts are given: so many as ASHA
lets through its rungs, which with a reduction factor of 3 are at validations 1 and 3."""

Dtype = Literal["float32", "bfloat16"]

SIZES: Mapping[Dtype, tuple[int, int]] = {"float32": (2, 4), "bfloat16": (10, 16)}
"""Of each type: steps between two validations, and rows of one. A processor with products in bfloat16
does them several times as fast as in float32: so a search takes minutes with either."""

LEARNING_RATES = (1.0e-4, 4.0e-3)
RANKS = (8, 16, 32)
BATCH_SIZES = (1, 2)


@dataclass(frozen=True)
class Workload:
    """One search.

    Attributes:
        model: Folder of the base model.
        data: Folder of ``train.json`` and ``validation.json``.
        scripted: Whether configs and verdicts are given: then all contestants do the same steps.
        seed: Of the configs that are given, and of the contestants' samplers.
        concurrency: Trials side by side.
        threads: Of each process that trains, where each trial has one.
        num_trials: At most the courses' number.
        dtype: Of the base model.
        max_length: Tokens of a row at most.
        reduction_factor: Of the pruners, where they decide.
        num_initial: First configs that are given where the samplers decide on the rest.
    """

    model: Path
    data: Path
    scripted: bool
    seed: int = 0
    concurrency: int = 1
    threads: int = 2
    num_trials: int = len(COURSES)
    dtype: Dtype = "float32"
    max_length: int = 256
    reduction_factor: int = 3
    num_initial: int = 10

    @property
    def eval_steps(self) -> int:
        """From one validation to the next."""
        return SIZES[self.dtype][0]

    @property
    def eval_max_samples(self) -> int:
        """Rows of a validation."""
        return SIZES[self.dtype][1]

    @property
    def max_steps(self) -> int:
        """Of a trial that is never stopped."""
        return NUM_VALIDATIONS * self.eval_steps

    def at(self, concurrency: int, threads: int) -> Workload:
        """Return the same search, otherwise arranged."""
        return replace(self, concurrency=concurrency, threads=threads)

    def configs(self) -> list[dict[str, float | int]]:
        """Return as many configs as there are trials, drawn from the space."""
        draw = random.Random(self.seed)
        low, high = LEARNING_RATES
        return [
            {
                "learning_rate": float(f"{low * (high / low) ** draw.random():.4g}"),
                "lora_r": draw.choice(RANKS),
                "batch_size": draw.choice(BATCH_SIZES),
            }
            for _ in range(self.num_trials)
        ]

    def courses(self) -> Sequence[int]:
        """Return after which validation each trial stops."""
        courses = list(COURSES)
        random.Random(self.seed).shuffle(courses)
        return courses[: self.num_trials]

    def as_json(self) -> Mapping[str, object]:
        """Return what the peers read."""
        script = [
            {**config, "num_validations": course}
            for config, course in zip(self.configs(), self.courses(), strict=True)
        ]
        return {
            "model": str(self.model),
            "train_file": str(self.data / "train.json"),
            "validation_file": str(self.data / "validation.json"),
            "max_length": self.max_length,
            "dtype": self.dtype,
            "max_steps": self.max_steps,
            "eval_steps": self.eval_steps,
            "eval_max_samples": self.eval_max_samples,
            "eval_batch_size": 8,
            "num_trials": self.num_trials,
            "seed": self.seed,
            "concurrency": self.concurrency,
            "threads": self.threads,
            "reduction_factor": self.reduction_factor,
            "space": {
                "learning_rate": {"low": LEARNING_RATES[0], "high": LEARNING_RATES[1]},
                "lora_r": list(RANKS),
                "batch_size": list(BATCH_SIZES),
            },
            "initial": [] if self.scripted else self.configs()[: self.num_initial],
            "script": script if self.scripted else None,
        }

    def write_validation(self, path: Path) -> None:
        """Write the rows that are validated on: the first of their file."""
        rows = json.loads((self.data / "validation.json").read_text(encoding="utf-8"))
        path.write_text(json.dumps(rows[: self.eval_max_samples]), encoding="utf-8")

    def write(self, path: Path) -> None:
        """Put the search into a file for a peer."""
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
