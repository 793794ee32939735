"""What passes between two trials of a worker, and before the first one: fake trials, nothing to load."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.conditions import ROOT
from benchmarks.driver import fake
from benchmarks.driver.searches import SPACE, Event, events_in, joined_nodes, search
from benchmarks.figures import Figure, at_most

NUM_TRIALS = 9


def turnover_figures(repetitions: int, tell: Callable[[str], None]) -> list[Figure]:
    """Return the seconds between two trials' steps on one worker; each value is a search's median."""
    found: list[float] = []
    with joined_nodes(1):
        for number in range(repetitions + 1):
            tell(f"between trials: search {number} of {repetitions}")
            found.append(statistics.median(gaps(search(NUM_TRIALS, {"max_steps": 3}).events)))
    name = "from a trial's last step to the next one's first, warm worker, without the trainer, s"
    return [Figure(name, tuple(found[1:]), at_most(0.3))]


def gaps(events: Sequence[Event]) -> list[float]:
    """Return the seconds from each trial's last step to the first step of the next on its host."""
    found = []
    for host in {event.host for event in events}:
        steps = [event for event in events if event.host == host and event.step > 0]
        steps = [event for event in steps if event.what in ("stepped", "ended")]
        found += [after.at - before.at for before, after in pairwise(steps) if after.step == 1]
    return found


def start_figures(repetitions: int, tell: Callable[[str], None]) -> list[Figure]:
    """Return the seconds from `hpo run` to the first step, and to the end of two short trials."""
    first, whole, cpu = [], [], []
    for number in range(repetitions):
        tell(f"start-up: {number + 1} of {repetitions}")
        with tempfile.TemporaryDirectory(prefix="hpo-bench-") as folder:
            began, before = time.time(), os.times()
            events = _run_command(Path(folder))
            after = os.times()
            first.append(next(event.at for event in events if event.step == 1) - began)
            whole.append(time.time() - began)
            spent = after.children_user + after.children_system
            cpu.append(spent - before.children_user - before.children_system)
    return [
        Figure("from `hpo run` to the first step, without the trainer, s", tuple(first)),
        Figure("`hpo run` of two trials without work, s", tuple(whole)),
        Figure("its processor time without Ray's processes, s", tuple(cpu)),
    ]


def _run_command(folder: Path) -> tuple[Event, ...]:
    """Run a study of two trials as a user does; return what its host has noted."""
    document = {
        "study": "fake",
        "trainer": fake.NAME,
        "fixed": {"journal": str(folder / "journal.jsonl"), "max_steps": 2},
        "space": SPACE,
        "resources": {"gpu": 1},
        "report_to": "none",
    }
    (folder / "study.yaml").write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
    subprocess.run(
        [sys.executable, "-m", "hpo", "run", "study.yaml", "--trials", "2"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    return events_in(folder / "journal.jsonl")
