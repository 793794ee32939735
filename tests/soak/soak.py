"""The soak: one study, whose driver, hosts, raylet and GCS are killed in turn, again and again.

Between two kills the study must make progress, however little. In the end it is let finish, and what
is left is held against what was promised, from the database and the disk.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from hpo.storage.database import shown
from hpo.studies import StudyRecord, open_study
from tests.integration.command import write_study
from tests.kills.audit import Findings, Journal, audit
from tests.soak.run import Run, TooLongError, kill, wait_until

STUDY = "s"
MORE_TRIALS = 100
LINE_BYTES = 85
MOST_STEPS = 120
TURN = ("host", "driver", "host", "raylet", "host", "driver", "host", "gcs_server")
ENDS_THE_RUN = ("driver", "raylet", "gcs_server")
FIXED = {"max_steps": 24, "eval_steps": 2, "step_s": 0.03, "overfit": 0.01}


@dataclass
class Soak:
    """One soak.

    Attributes:
        folder: Where the study lives.
        url: Of its database.
        seconds: How long processes are killed.
        seed: Of the moments and the victims.
        env: More of the drivers' environment.
    """

    folder: Path
    url: str
    seconds: float
    seed: int
    env: dict[str, str]
    kills: Counter[str] = field(default_factory=Counter)
    found: Findings = field(default_factory=Findings)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._num_trials = MORE_TRIALS
        self._runs: list[Run] = []
        self._record: StudyRecord | None = None
        self._journal = Journal(self.folder / "journal.jsonl")
        self._began = time.monotonic()
        write_study(
            self.folder,
            fixed=FIXED,
            resources={"gpu": 0.25},
            max_failures=1000,
            lease_s=5,
            pruner={"type": "asha", "min_resource": 2, "reduction_factor": 3},
        )

    def soak(self) -> Findings:
        """Kill until the time is up, let the study finish, and return what is wrong with it."""
        run = self._begin("run", "study.yaml")
        try:
            turn = 0
            while time.monotonic() < self._began + self.seconds:
                if run.is_over:
                    run = self._go_on(run)
                elif self._strike(run, TURN[turn % len(TURN)]):
                    turn += 1
            self._finish(run)
        finally:
            for run in self._runs:
                run.end()
        return self.found

    def _begin(self, *args: str) -> Run:
        more = ("--storage", self.url, "--trials", str(self._num_trials))
        run = Run(self.folder, *args, *more, env=self.env)
        self._runs.append(run)
        return run

    def _strike(self, run: Run, kind: str) -> bool:
        """Wait for progress, then kill one process; return whether it came to that."""
        size = self._journal_bytes() + LINE_BYTES * self._random.randint(1, MOST_STEPS)
        victims: list[psutil.Process] = []

        def is_time() -> bool:
            victims[:] = run.find(kind) if self._journal_bytes() >= size else []
            return bool(victims) or run.is_over

        try:
            wait_until(is_time, f"the study makes progress, and there is a {kind}")
        except TooLongError as error:
            self.found.zombies.append(str(error))
            run.end()
            return False
        if run.is_over:
            return False
        kill(self._random.choice(victims))
        self.kills[kind] += 1
        self._say(
            f"kill {self.kills.total()}: {kind}, at {self._journal_bytes() // LINE_BYTES} steps"
        )
        if kind in ENDS_THE_RUN:
            self._see_out(run, kind)
        self._journal.note_kill(self.folder / "runs" / STUDY, self._study())
        return True

    def _see_out(self, run: Run, kind: str) -> None:
        """Wait until a driver that lost its cluster, or the cluster that lost its driver, is gone."""
        began = time.monotonic()
        try:
            code = run.wait_until_over()
            if kind != "driver":
                self._say(f"the driver ends with {code}, after {time.monotonic() - began:.0f} s")
            run.wait_until_still()
        except TooLongError as error:
            self.found.zombies.append(f"after the kill of {kind}: {error}")
            run.end()

    def _go_on(self, run: Run) -> Run:
        """Resume after a run has ended: with more trials, if it was done."""
        if run.driver.returncode == 0:
            self._num_trials += MORE_TRIALS
        return self._begin("resume", STUDY)

    def _finish(self, run: Run) -> None:
        """Let the study end; then once more, when what dead writers left is old."""
        self._say("no more kills; it shall finish")
        if run.is_over:
            run = self._begin("resume", STUDY)
        self._see_end(run)
        runs = self.folder / "runs" / STUDY
        for path in (*runs.glob(".*"), *runs.glob("*/.*")):
            os.utime(path, (0.0, 0.0))
        self._see_end(self._begin("resume", STUDY))
        for each in self._runs:
            self.found.zombies += [f"left: {line}" for line in each.wait_until_alone(180.0)]
        self._journal.check()
        told = audit(self._study(), runs, self._num_trials)
        self.found.lost += [*self._journal.trained_again, *told.lost]
        self.found.zombies += told.zombies
        self.found.duplicates += told.duplicates

    def _see_end(self, run: Run) -> None:
        wait_until(lambda: run.watch() or run.is_over, "the study ends", 600.0)
        if run.driver.returncode != 0:
            self.found.lost.append(f"the last run ends with {run.driver.returncode}")

    def _study(self) -> StudyRecord:
        if self._record is None:
            self._record = open_study(STUDY, self.url)
        return self._record

    def _journal_bytes(self) -> int:
        path = self.folder / "journal.jsonl"
        return path.stat().st_size if path.exists() else 0

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {text}", file=sys.stderr, flush=True)


def told(soak: Soak) -> str:
    """Return the line that a soak ends with."""
    found = soak.found
    return (
        f"kills {soak.kills.total()} lost {len(found.lost)} zombies {len(found.zombies)} "
        f"duplicates {len(found.duplicates)}"
    )


def described(soak: Soak) -> str:
    """Return what was done, and everything that is wrong."""
    kills = ", ".join(f"{kind} {count}" for kind, count in sorted(soak.kills.items()))
    found = soak.found
    lines = [f"on {shown(soak.url)}, seed {soak.seed}: {kills or 'none'}"]
    for kind in ("lost", "zombies", "duplicates"):
        lines += [f"{kind}: {line}" for line in getattr(found, kind)]
    return "\n".join(lines)
