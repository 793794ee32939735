"""Memory of a pack: the peaks of processes with no trial, with one, and with eight on one base."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from benchmarks.figures import Figure, at_most, ratio
from benchmarks.packing.cases import Case, read_text

NUM_TRIALS = 8
NUM_STEPS = 3
GOAL = 8.5
MIB = 2**20
KIB = 2**10

_RESET_PEAK = "5"
"""What to write to /proc/self/clear_refs; see proc(5)."""


@dataclass(frozen=True)
class Peak:
    """Memory of a process.

    Attributes:
        resident: Its greatest resident size since its model was loaded, in bytes.
        of_files: How much of that are pages of files, which processes on a machine share.
    """

    resident: int
    of_files: int


def memory_figures(
    model: str, repetitions: int, threads: int, tell: Callable[[str], None]
) -> list[Figure]:
    """Return the figures, each repetition from processes of its own."""
    none, one, eight = [], [], []
    for number in range(repetitions):
        tell(f"memory: round {number + 1} of {repetitions}")
        none.append(_in_new_process(model, 0, threads))
        one.append(_in_new_process(model, 1, threads))
        eight.append(_in_new_process(model, NUM_TRIALS, threads))
    above_one = [peak.resident - base.resident for peak, base in zip(one, none, strict=True)]
    above_eight = [peak.resident - base.resident for peak, base in zip(eight, none, strict=True)]
    apart = [NUM_TRIALS * (peak.resident - peak.of_files) + peak.of_files for peak in one]
    together = [peak.resident for peak in eight]
    return [
        Figure("libraries and base model, MiB", tuple(peak.resident / MIB for peak in none)),
        Figure("one trial of 4 x 64 above that, MiB", tuple(size / MIB for size in above_one)),
        Figure("eight in one pack above that, MiB", tuple(size / MIB for size in above_eight)),
        ratio(
            "eight in one pack / one, both above the base", above_eight, above_one, at_most(GOAL)
        ),
        ratio(
            "eight as processes / eight in one pack",
            apart,
            together,
            note="eight times the process with one trial, its pages of files counted once",
        ),
    ]


def _in_new_process(model: str, num_trials: int, threads: int) -> Peak:
    """Return the peak of a process that never did anything else."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak, model, num_trials, threads).result()


def _peak(model: str, num_trials: int, threads: int) -> Peak:
    """Load the base model and train trials for some steps; return this process's peak."""
    import torch

    from benchmarks.packing.pack import Pack

    torch.set_num_threads(threads)
    pack = Pack(model, Case(num_trials, 4, 64), read_text())
    pack.touch_base()
    gc.collect()
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    for _ in range(NUM_STEPS):
        pack.advance()
    return Peak(resident=_status("VmHWM"), of_files=_status("RssFile"))


def _status(name: str) -> int:
    """Return a size from this process's status, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, f"/proc/self/status has no {name}"
    return int(found[1]) * KIB
