"""Faults at named points: off they are nothing, armed they strike once and where they should."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from hpo import faults
from tests.integration.command import ROOT, wait_until

REACH = "from hpo import faults\nfor _ in range(3): faults.reached('told'); print('on', flush=True)"


@pytest.fixture(autouse=True)
def _disarmed() -> object:
    yield
    faults.arm("")


def reach(**env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", REACH],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_off_a_point_is_an_empty_function() -> None:
    assert faults.reached is faults._nothing


def test_a_kill_strikes_at_the_time_that_it_is_armed_for() -> None:
    killed = reach(HPO_FAULTS="told=kill@3")
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "on\non\n")


def test_processes_that_share_a_folder_are_struck_once(tmp_path: Path) -> None:
    env = {"HPO_FAULTS": "told=kill", "HPO_FAULTS_FOLDER": str(tmp_path)}
    assert reach(**env).returncode == -signal.SIGKILL
    assert reach(**env).returncode == 0


def test_a_full_disk_is_the_systems_own_error() -> None:
    faults.arm("checkpoint saved = disk_full")
    with pytest.raises(OSError, match="No space left") as caught:
        faults.reached("checkpoint saved")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("text", ["nowhere=kill", "told=explode", "told=kill@x", "told"])
def test_what_cannot_be_armed_is_said_with_what_can(text: str) -> None:
    with pytest.raises(ValueError, match=r"Points: proposed, .*Actions: kill, "):
        faults.arm(text)


def test_every_point_is_placed_and_no_other() -> None:
    source = "".join(path.read_text() for path in (ROOT / "hpo").rglob("*.py"))
    placed = set(re.findall(r'faults\.reached\("([^"]+)"\)', source))
    assert placed == set(faults.POINTS)


@pytest.mark.parametrize("action", ["hang", "freeze"])
def test_what_is_stalled_goes_no_further_and_can_be_killed(action: str) -> None:
    stalled = subprocess.Popen(
        [sys.executable, "-c", REACH],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HPO_FAULTS": f"told={action}@2"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert stalled.stdout is not None
    assert stalled.stdout.readline() == "on\n"
    process = psutil.Process(stalled.pid)
    quiet = psutil.STATUS_STOPPED if action == "freeze" else psutil.STATUS_SLEEPING
    wait_until(lambda: process.status() == quiet, f"it is {quiet}")
    stalled.kill()
    assert stalled.communicate(timeout=60)[0] == "", "it came no further"
    assert stalled.returncode == -signal.SIGKILL
