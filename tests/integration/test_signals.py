"""Drivers that are asked to leave by a signal; checked from the database, the disk and the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.integration.command import (
    begin,
    hpo,
    journal,
    newest_steps,
    trained,
    trials_of,
    wait_until,
    write_study,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MARK = "HPO_TEST_MARK"
GRACE_S = 30.0  # a spot instance and Slurm kill after so long


@dataclass
class Run:
    """A driver, and everything that it has started: all of them carry a mark in their environment."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: subprocess.Popen[str] | None = None

    def begin(self, *args: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        self.process = begin(self.folder, *args, env={MARK: self.mark, **(env or {})})
        return self.process

    @property
    def said(self) -> str:
        return (self.folder / "hpo.log").read_text()

    def alive(self) -> list[psutil.Process]:
        """Return every process of this run that lives, wherever it hangs in the tree."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def leftovers(self) -> list[Path]:
        """Return the temporary folders of this run."""
        assert self.process is not None
        tmp, pid = Path(tempfile.gettempdir()), self.process.pid
        return [*tmp.glob(f"ray/session_2*_{pid}"), *tmp.glob(f"hpo-tune-{pid}-*")]

    def check_gone(self) -> None:
        assert not self.alive(), "no process is left behind"
        assert not self.leftovers()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    for process in made.alive():
        process.kill()


def alone(process: subprocess.Popen[str], number: int) -> None:
    """Signal the driver only, as `kill` does."""
    process.send_signal(number)


def group(process: subprocess.Popen[str], number: int) -> None:
    """Signal everything in its process group, as a terminal and a batch system do."""
    os.killpg(process.pid, number)


@pytest.mark.parametrize(
    ("number", "send"),
    [
        pytest.param(signal.SIGTERM, group, id="SIGTERM to the group"),
        pytest.param(signal.SIGINT, group, id="SIGINT to the group", marks=pytest.mark.soak),
        pytest.param(signal.SIGHUP, group, id="SIGHUP to the group", marks=pytest.mark.soak),
        pytest.param(signal.SIGTERM, alone, id="SIGTERM", marks=pytest.mark.soak),
    ],
)
def test_a_signal_saves_every_trial_and_leaves_in_time_without_a_trace(
    tmp_path: Path,
    run: Run,
    number: int,
    send: Callable[[subprocess.Popen[str], int], None],
) -> None:
    write_study(tmp_path, fixed={"step_s": 0.15, "max_steps": 40, "eval_steps": 10})
    process = run.begin("run", "study.yaml", "--trials", "3")
    wait_until(lambda: len(journal(tmp_path)) > 6, "six steps are trained")
    send(process, number)
    assert process.wait(timeout=GRACE_S) == 130
    run.check_gone()
    trials = trials_of(tmp_path)
    assert {t["state"] for t in trials} == {"WAITING"}
    last = {number: steps[-1] for number, steps in trained(tmp_path, 0).items()}
    assert newest_steps(tmp_path) == last, "saved at its very last step, between two validations"
    lines = len(journal(tmp_path))
    assert hpo(tmp_path, "resume", "s").code == 0
    for trial, steps in trained(tmp_path, lines).items():
        assert steps[0] == last.get(trial, 0) + 1
    assert {t["state"] for t in trials_of(tmp_path)} <= {"COMPLETE", "PRUNED"}


@pytest.mark.soak
def test_a_second_signal_leaves_at_once_without_a_trace(tmp_path: Path, run: Run) -> None:
    write_study(tmp_path, fixed={"step_s": 60.0})
    process = run.begin("run", "study.yaml", "--trials", "3")
    wait_until(lambda: len(journal(tmp_path)) == 2, "both places are taken")
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: "saving every running trial" in run.said, "it says so")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) == 130
    assert time.monotonic() - began < 15
    run.check_gone()
    assert "stopped at once. To go on: hpo resume s" in run.said
    assert {t["state"] for t in trials_of(tmp_path)} == {"WAITING"}


@pytest.mark.soak
def test_a_step_that_takes_too_long_is_not_waited_for(tmp_path: Path, run: Run) -> None:
    write_study(tmp_path, fixed={"step_s": 60.0})
    process = run.begin("run", "study.yaml", "--trials", "3")
    wait_until(lambda: len(journal(tmp_path)) == 2, "both places are taken")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=GRACE_S) == 130
    run.check_gone()
    assert "trials 0, 1 had not saved within 20 s" in run.said
    assert {t["state"] for t in trials_of(tmp_path)} == {"WAITING"}


@pytest.mark.soak
@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("starting Ray", {}),
        ("trial 0 begins", {"fixed": {"base": "slow"}}),
        ("measuring how many", {"fixed": {"base": "slow"}, "resources": {"gpu": "auto"}}),
    ],
    ids=["while Ray starts", "while the model loads", "while gpu: auto measures"],
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_is_heeded_before_anything_is_trained(
    tmp_path: Path, run: Run, said: str, changes: dict[str, object], times: int
) -> None:
    write_study(tmp_path, **changes)
    process = run.begin("run", "study.yaml", "--trials", "3")
    wait_until(lambda: said in run.said, said)
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)  # two at once are one to the kernel
    assert process.wait(timeout=GRACE_S) == 130, run.said
    run.check_gone()
    assert journal(tmp_path) == []


def test_after_a_driver_is_killed_alone_everything_it_started_ends_by_itself(
    tmp_path: Path, run: Run
) -> None:
    write_study(tmp_path, fixed={"step_s": 0.1, "max_steps": 30}, lease_s=5)
    process = run.begin("run", "study.yaml", "--trials", "2")
    wait_until(lambda: len(journal(tmp_path)) > 6, "six steps are trained")
    process.kill()
    process.wait()
    wait_until(lambda: not run.alive(), "all processes have ended", timeout=15)
    (session,) = run.leftovers()
    saved, lines = newest_steps(tmp_path), len(journal(tmp_path))
    assert hpo(tmp_path, "resume", "s").code == 0
    assert not session.exists(), "Ray's own folder goes with the next run"
    for trial, steps in trained(tmp_path, lines).items():
        assert steps[0] == saved.get(trial, 0) + 1
    assert {t["state"] for t in trials_of(tmp_path)} <= {"COMPLETE", "PRUNED"}
