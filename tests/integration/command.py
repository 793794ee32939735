"""Runs `hpo` as a user does: a process of its own, in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from hpo.checkpoints import CheckpointStore

ROOT = Path(__file__).parents[2]
SPACE = {
    "x": {"type": "float", "low": -1.0, "high": 1.0},
    "y": {"type": "int", "low": 1, "high": 4},
}


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> object:
        """Return stdout as JSON."""
        return json.loads(self.out)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment, with the tests importable and a wide terminal.

    Without the threads of the tests' own process: `hpo train` has as many as a host, because the last
    bits of a loss depend on their number.
    """
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return {**own, "PYTHONPATH": str(ROOT), "COLUMNS": "160", **(extra or {})}


def command(*args: str) -> list[str]:
    """Return the command line of `hpo` in this environment."""
    return [sys.executable, "-m", "hpo", *args]


def hpo(
    folder: Path, *args: str, env: Mapping[str, str] | None = None, timeout: float = 300
) -> Result:
    """Run `hpo` to its end."""
    done = subprocess.run(
        command(*args),
        cwd=folder,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def begin(folder: Path, *args: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `hpo` in a process group of its own."""
    log = (folder / "hpo.log").open("a")
    return subprocess.Popen(
        command(*args),
        cwd=folder,
        env=environment(env),
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it started, and wait until it is gone."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(condition: Callable[[], object], what: str, timeout: float = 120) -> None:
    """Wait for a condition that must come; fail with its name if it does not."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain: {what}")
        time.sleep(0.05)


def write_study(folder: Path, **changes: object) -> Path:
    """Write a study's file on the fake trainer, whose journal is `journal.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    fixed = {"max_steps": 9, "journal": "./journal.jsonl", "step_s": 0.02}
    document = {
        "study": "s",
        "trainer": "tests.fake_trainer:FakeTrainer",
        "fixed": {**fixed, **dict(changes.pop("fixed", {}))},
        "space": SPACE,
        "resources": {"gpu": 0.5},
        **changes,
    }
    path = folder / "study.yaml"
    with path.open("w") as file:
        YAML().dump(document, file)
    return path


def journal(folder: Path) -> list[dict[str, object]]:
    """Return what the fake trainer noted: one line a step and a joining."""
    path = folder / "journal.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def trials_of(folder: Path) -> list[dict[str, object]]:
    """Return the study's trials, as programs get them."""
    return hpo(folder, "status", "s", "--json").json()["trials"]


def newest_steps(folder: Path) -> dict[int, int]:
    """Return the step of each unfinished trial's newest whole checkpoint."""
    store = CheckpointStore(folder / "runs" / "s")
    found = {number: store.newest(number) for number in store.trials()}
    return {number: checkpoint.step for number, checkpoint in found.items() if checkpoint}


def trained(folder: Path, after_line: int) -> dict[int, list[int]]:
    """Return the steps that the journal has of each trial, after so many lines of it."""
    steps: dict[int, list[int]] = {}
    for line in journal(folder)[after_line:]:
        if line["what"] == "step":
            steps.setdefault(line["trial"], []).append(line["step"])
    return steps
