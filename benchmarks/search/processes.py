"""Runs a command, and measures it together with every process that it starts.

Memory is counted in proportional set size: a page that processes share counts once. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_S = 0.5
MEMORY_EVERY = 8
"""Samples between two looks at memory, which hold up a large process for a while."""
MIB = 2**20

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Spent:
    """What a command took.

    Attributes:
        started: By the clock.
        wall_s: Until it ended.
        cpu_s: Of all its processes, as far as seen twice a second.
        peak_mib: Of all its processes at one moment.
        code: Its exit code.
    """

    started: float
    wall_s: float
    cpu_s: float
    peak_mib: float
    code: int


def run_measured(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    folder: Path,
    timeout_s: float,
) -> Spent:
    """Run a command in a folder; its output goes to a file.

    What it leaves running is ended with it. No other child of this process is touched.
    """
    # Daemons of the command become children of this process, so that they are counted and ended.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    family = _Family()
    peak = 0.0
    with log.open("wb") as output:
        started, began = time.time(), time.perf_counter()
        child = subprocess.Popen(
            list(command),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
        for number in itertools.count():
            family.note_times()
            if number % MEMORY_EVERY == 0:
                peak = max(peak, family.memory())
            try:
                child.wait(SAMPLE_S)
                break
            except subprocess.TimeoutExpired:
                if time.perf_counter() - began > timeout_s:
                    os.killpg(child.pid, signal.SIGKILL)
        wall = time.perf_counter() - began
    family.end()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    return Spent(started, wall, family.cpu_s, peak / MIB, child.returncode)


class _Family:
    """All descendants of this process that were not there when this was made."""

    def __init__(self) -> None:
        self._us = psutil.Process()
        self._before = set(self._us.children(recursive=True))
        self._times: dict[psutil.Process, float] = {}

    @property
    def cpu_s(self) -> float:
        """Processor time of all, also of those that have ended since it was noted."""
        return sum(self._times.values())

    def note_times(self) -> None:
        """Note the processor time of each."""
        for process in self._present():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                times = process.cpu_times()
                self._times[process] = times.user + times.system

    def memory(self) -> float:
        """Return the memory of all together, in bytes."""
        total = 0.0
        for process in self._present():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
                total += process.memory_full_info().pss
        return total

    def end(self) -> None:
        """Kill what is left."""
        left = self._present()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)

    def _present(self) -> list[psutil.Process]:
        return [of for of in self._us.children(recursive=True) if of not in self._before]
