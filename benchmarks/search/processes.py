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

    What it leaves running is ended with it.
    """
    # Daemons of the command become children of this process, so that they are counted and ended.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    us = psutil.Process()
    cpu: dict[tuple[int, float], float] = {}
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
            _note_times(us, cpu)
            if number % MEMORY_EVERY == 0:
                peak = max(peak, _memory(us))
            try:
                child.wait(SAMPLE_S)
                break
            except subprocess.TimeoutExpired:
                if time.perf_counter() - began > timeout_s:
                    os.killpg(child.pid, signal.SIGKILL)
        wall = time.perf_counter() - began
    _end_all(us)
    return Spent(started, wall, sum(cpu.values()), peak / MIB, child.returncode)


def _note_times(us: psutil.Process, cpu: dict[tuple[int, float], float]) -> None:
    """Note the processor time of every descendant."""
    for process in us.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            times = process.cpu_times()
            cpu[process.pid, process.create_time()] = times.user + times.system


def _memory(us: psutil.Process) -> float:
    """Return the memory of all descendants in bytes."""
    memory = 0.0
    for process in us.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            memory += process.memory_full_info().pss
    return memory


def _end_all(us: psutil.Process) -> None:
    left = us.children(recursive=True)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=10)
