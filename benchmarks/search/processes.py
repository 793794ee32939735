"""Runs a command, and measures it together with every process that it starts.

Memory is counted in proportional set size: a page that processes share counts once. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
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
class Times:
    """The processor time that a command has taken until a moment.

    Attributes:
        at: By the clock.
        own_s: Of the process that was started.
        all_s: Of this and all that it has started, as far as seen twice a second.
    """

    at: float
    own_s: float
    all_s: float


@dataclass(frozen=True)
class Spent:
    """What a command took.

    Attributes:
        started: By the clock.
        wall_s: Until it ended.
        times: Twice a second.
        peak_mib: Of all its processes at one moment.
        code: Its exit code.
    """

    started: float
    wall_s: float
    times: Sequence[Times]
    peak_mib: float
    code: int

    @property
    def cpu_s(self) -> float:
        """Processor time of all its processes."""
        return self.times[-1].all_s

    def own_share(self, began: float, ended: float) -> float:
        """Return the share of the process that was started in the processor time between two moments."""
        within = [times for times in self.times if began <= times.at <= ended]
        if len(within) < 2:
            return math.nan
        first, last = within[0], within[-1]
        return (last.own_s - first.own_s) / (last.all_s - first.all_s)


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
    times: list[Times] = []
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
            times.append(Times(time.time(), *family.cpu_s(child.pid)))
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
    return Spent(started, wall, times, peak / MIB, child.returncode)


class _Family:
    """All descendants of this process that were not there when this was made."""

    def __init__(self) -> None:
        self._us = psutil.Process()
        self._before = set(self._us.children(recursive=True))
        self._times: dict[psutil.Process, float] = {}

    def cpu_s(self, pid: int) -> tuple[float, float]:
        """Return the processor time of one of them and of all, also of those that have ended since."""
        for process in self._present():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                times = process.cpu_times()
                self._times[process] = times.user + times.system
        own = sum(seconds for process, seconds in self._times.items() if process.pid == pid)
        return own, sum(self._times.values())

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
