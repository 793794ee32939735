"""Runs a command, and measures it together with every process that it starts.

Memory is counted in proportional set size: a page that processes share counts once. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_S = 0.5
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
        while True:
            peak = max(peak, _sample(us, cpu))
            try:
                child.wait(SAMPLE_S)
                break
            except subprocess.TimeoutExpired:
                if time.perf_counter() - began > timeout_s:
                    os.killpg(child.pid, signal.SIGKILL)
        wall = time.perf_counter() - began
    _sample(us, cpu)
    _end_all(us)
    return Spent(started, wall, sum(cpu.values()), peak / MIB, child.returncode)


def _sample(us: psutil.Process, cpu: dict[tuple[int, float], float]) -> float:
    """Note the processor time of every descendant; return their memory in bytes."""
    memory = 0.0
    for process in us.children(recursive=True):
        try:
            times = process.cpu_times()
            cpu[process.pid, process.create_time()] = times.user + times.system
            memory += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue  # it has just ended
    return memory


def _end_all(us: psutil.Process) -> None:
    left = us.children(recursive=True)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=10)
