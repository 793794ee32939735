"""Flow: how full the pack is while a study has trials left to begin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.conditions import ROOT
from benchmarks.figures import Figure, at_least
from benchmarks.packing.cases import TEXT_FILE
from hpo import trial_log
from hpo.checkpoints import CheckpointStore

NUM_TRIALS = 24
PACK_SIZE = 8
GOAL = 6.5
STUDY = "flow"

Line = Mapping[str, object]

_BEGINS = re.compile(r"\] trial (\d+) begins")
_REPORTS = re.compile(r"\] trial (\d+) step (\d+)")


class FlowError(Exception):
    """The study did not run, or its logs do not say what is needed."""


def flow_figures(model: str, repetitions: int, tell: Callable[[str], None]) -> list[Figure]:
    """Return the figures of so many studies, each with a seed of its own.

    Raises:
        FlowError: A study failed.
    """
    filled, overall = [], []
    for seed in range(repetitions):
        tell(f"flow: study {seed + 1} of {repetitions}, {NUM_TRIALS} trials")
        with tempfile.TemporaryDirectory() as name:
            said, logs = _run_study(Path(name), model, seed)
        steps = steps_before_the_last_begins(said)
        filled.append(mean_pack(_up_to(logs, steps)))
        overall.append(mean_pack(line for lines in logs.values() for line in lines))
    return [
        Figure(
            f"trials in a pass, of {PACK_SIZE}, until the last of {NUM_TRIALS} has begun",
            tuple(filled),
            at_least(GOAL),
            "a mean over passes; each trial's steps up to its last report before that",
        ),
        Figure("trials in a pass, over the whole study", tuple(overall)),
    ]


def mean_pack(lines: Iterable[Line]) -> float:
    """Return the mean number of trials in a pass, over passes.

    A pass of five trials has left five lines, which each count for a fifth of it.

    Raises:
        FlowError: There is no line, or one that does not say how many trials were in its pass.
    """
    sizes = []
    for line in lines:
        size = line.get("pack")
        if not isinstance(size, int) or size < 1:
            raise FlowError(f"a step's line does not say how many trials were in its pass: {line}")
        sizes.append(size)
    if not sizes:
        raise FlowError("no step was made before the last trial began.")
    return len(sizes) / sum(1 / size for size in sizes)


def steps_before_the_last_begins(said: str) -> dict[int, int]:
    """Return the step of each trial's last report before the last trial began.

    Lines of a log have no time. What a run says is in the order in which it happened, so that these
    steps were surely made before; what a trial did since its report is left out.

    Args:
        said: By `hpo run`, line by line.

    Raises:
        FlowError: Not all trials began.
    """
    steps: dict[int, int] = {}
    found: dict[int, int] = {}
    begun = set()
    for line in said.splitlines():
        if report := _REPORTS.search(line):
            steps[int(report[1])] = int(report[2])
        elif begins := _BEGINS.search(line):
            begun.add(int(begins[1]))
            found = dict(steps)
    if len(begun) != NUM_TRIALS:
        raise FlowError(f"{len(begun)} of {NUM_TRIALS} trials began:\n{said}")
    return found


def _up_to(logs: Mapping[int, Sequence[Line]], steps: Mapping[int, int]) -> list[Line]:
    return [
        line
        for number, lines in logs.items()
        for line in lines
        if int(str(line["step"])) <= steps.get(number, 0)
    ]


def _run_study(folder: Path, model: str, seed: int) -> tuple[str, dict[int, list[Line]]]:
    """Run a study as a user does; return what it said, and the step lines of each trial."""
    path = folder / "study.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(_study(model, seed), file)
    done = subprocess.run(
        [sys.executable, "-m", "hpo", "run", str(path)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HPO_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise FlowError(f"hpo run ended with code {done.returncode}:\n{done.stderr}")
    store = CheckpointStore(folder / "runs" / STUDY)
    logs: dict[int, list[Line]] = {
        number: [
            line
            for line in trial_log.read(store.trial_folder(number))
            if line.get("kind") == "step" and "loss" in line
        ]
        for number in range(NUM_TRIALS)
    }
    return done.stderr, logs


def _study(model: str, seed: int) -> dict[str, object]:
    """Return a study's file, in the manner of search_spaces/quickstart.yaml."""
    return {
        "study": STUDY,
        "metric": "eval_loss",
        "direction": "minimize",
        "storage": "sqlite:///hpo.db",
        "output_dir": "runs",
        "trainer": "lora",
        "fixed": {
            "model_name_or_path": model,
            "train_file": str(TEXT_FILE),
            "validation_file": str(TEXT_FILE.with_name("validation.json")),
            "eval_max_samples": 8,
            "max_length": 128,
            "max_steps": 8,
            "eval_steps": 0.25,
        },
        "space": {
            "learning_rate": {"type": "float", "low": 1e-4, "high": 2e-3, "log": True},
            "lora_r": {"type": "categorical", "choices": [8, 16]},
            "lora_alpha": {"value": "2 * lora_r"},
            "per_device_train_batch_size": {"type": "int", "low": 1, "high": 2},
        },
        "sampler": {"type": "random", "seed": seed},
        "pruner": {"type": "asha", "min_resource": 1, "reduction_factor": 3},
        "resources": {"gpu": 1 / PACK_SIZE},
        "budget": {"trials": NUM_TRIALS},
    }
