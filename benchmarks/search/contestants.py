"""Who does the search, by which command, and in which arrangement of processes and threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.conditions import ROOT
from benchmarks.peers.environments import ensure, python_of
from benchmarks.search.events import Course
from benchmarks.search.ours import EVENTS, VALIDATION, study_file
from benchmarks.search.processes import Spent, run_measured
from benchmarks.search.workload import Workload

TIMEOUT_S = 1800.0
OURS = "hpo"
LIMIT = "bare loop"


class ContestantError(Exception):
    """A contestant failed, or did another search than it was to do."""


@dataclass(frozen=True)
class Done:
    """One search of one contestant."""

    spent: Spent
    course: Course


@dataclass(frozen=True)
class Contestant:
    """One way to do the search.

    Attributes:
        name: In the tables.
        script: Of ``benchmarks/peers``; None: ours.
        group: Of its environment.
        flags: Of the script.
        searches: Whether it has a sampler and a pruner of its own.
        arrangement: Trials side by side x threads of each process, unless another was measured to
            be faster.
    """

    name: str
    script: str | None
    group: str = "common"
    flags: tuple[str, ...] = ()
    searches: bool = True
    arrangement: str = "2 x 1"

    def prepare(self) -> None:
        """Make its environment, if it has one of its own."""
        if self.script is not None:
            ensure(self.group)

    def run(self, workload: Workload, folder: Path) -> Done:
        """Do the search in a new folder.

        Raises:
            ContestantError: It failed, or did not do what was asked for.
        """
        folder.mkdir(parents=True)
        command, environment = self._command(workload, folder)
        log = folder / "log.txt"
        spent = run_measured(command, log, environment, folder, TIMEOUT_S)
        course = Course.read(folder / "events.jsonl", spent.started)
        if spent.code != 0:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise ContestantError(f"{self.name} ended with code {spent.code}:\n{tail}")
        self._check(workload, course)
        return Done(spent, course)

    def _command(self, workload: Workload, folder: Path) -> tuple[list[str], Mapping[str, str]]:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "HPO_CACHE": str(folder / "cache"),
            "SYNETUNE_FOLDER": str(folder / "syne-tune"),
        }
        if self.script is None:
            path = folder / "study.yaml"
            with path.open("w", encoding="utf-8") as file:
                YAML().dump(study_file(workload), file)
            workload.write_validation(folder / VALIDATION)
            environment |= {"PYTHONPATH": str(ROOT), EVENTS: str(folder / "events.jsonl")}
            return [sys.executable, "-m", "hpo", "run", str(path)], environment
        environment["OMP_NUM_THREADS"] = str(workload.threads)
        environment.pop("PYTHONPATH", None)
        given = folder / "workload.json"
        workload.write(given)
        script = str(ROOT / "benchmarks" / "peers" / self.script)
        return [
            str(python_of(self.group)),
            script,
            str(given),
            str(folder),
            *self.flags,
        ], environment

    def _check(self, workload: Workload, course: Course) -> None:
        if course.num_trials != workload.num_trials:
            raise ContestantError(
                f"{self.name} trained {course.num_trials} of {workload.num_trials} trials"
            )
        asked = sum(workload.courses()) * workload.eval_steps
        if workload.scripted and self.script is not None and course.num_steps != asked:
            raise ContestantError(f"{self.name} did {course.num_steps} of {asked} steps")


CONTESTANTS = (
    Contestant(OURS, None, arrangement="4 x 1"),
    Contestant(LIMIT, "bare_loop.py", searches=False),
    Contestant("Ray Tune, reused actors", "ray_tune.py", flags=("--reuse-actors",)),
    Contestant("Ray Tune", "ray_tune.py"),
    Contestant("Optuna", "optuna_alone.py"),
    Contestant("Trainer.hyperparameter_search", "trainer_search.py"),
    Contestant("Syne Tune", "syne_tune_search.py", "syne_tune"),
    Contestant("LLaMA-Factory", "llama_factory.py", "llama_factory", searches=False),
)
