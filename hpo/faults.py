"""Named points at which a test may kill, stall or starve a process. Off, a point is an empty call.

`HPO_FAULTS="checkpoint renamed=kill@3; told=hang"` arms them: at its third checkpoint the process dies
as from `kill -9`, and so on. A process and all that it starts share `HPO_FAULTS_FOLDER`, in which each
fault is struck once; without it each process strikes its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "HPO_FAULTS"
FOLDER = "HPO_FAULTS_FOLDER"

POINTS: Mapping[str, str] = {
    "proposed": "a config is chosen and not stored",
    "running": "a trial is stored, leased and RUNNING, and not yet placed",
    "adopted": "an interrupted trial is RUNNING again and not yet brought up to its checkpoint",
    "report received": "a report has reached the study and is not stored",
    "report stored": "a report is stored and not judged",
    "judged": "how a trial ends is known, and is not told",
    "told": "a trial's end is stored, and its files are not yet dealt with",
    "releasing": "a trial is about to be handed back",
    "released": "a trial is WAITING",
    "best copied": "the best adapter lies beside `best/`",
    "best moved": "the old `best/` is out of the way, the new one not in its place",
    "best written": "`best/` is new",
    "checkpoint saved": "the trainer has written its files; no manifest",
    "checkpoint listed": "the manifest is written; not renamed",
    "checkpoint moved": "an older checkpoint of the same step is out of the way",
    "checkpoint renamed": "a checkpoint is whole; its report has not left",
    "deleting": "a checkpoint that cannot win is about to go",
    "deleted": "it is renamed out of sight, its bytes still there",
    "joined": "a host has taken a trial",
}
"""Every point, by what is true there."""


@dataclass(frozen=True)
class Fault:
    """What happens at a point, the how-manieth time it is reached."""

    action: str
    at: int


def _nothing(point: str) -> None:
    """Do nothing: no fault is armed."""


reached: Callable[[str], None] = _nothing
"""Called as ``faults.reached("told")`` where the code is at that point."""


def arm(text: str, folder: str | None = None) -> None:
    """Arm faults, as the variable does; an empty text disarms all.

    Raises:
        ValueError: A point or an action is unknown.
    """
    global reached
    faults = dict(_parse(part) for part in text.split(";") if part.strip())
    reached = _Armed(faults, folder) if faults else _nothing


class _Armed:
    """Counts how often each point is reached, and strikes."""

    def __init__(self, faults: Mapping[str, Fault], folder: str | None) -> None:
        self._faults = faults
        self._folder = folder
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, point: str) -> None:
        assert point in POINTS, point
        with self._lock:
            self._counts[point] += 1
            fault = self._faults.get(point)
            strikes = fault is not None and self._counts[point] == fault.at and self._first(point)
        if strikes:
            assert fault is not None
            ACTIONS[fault.action]()

    def _first(self, point: str) -> bool:
        if self._folder is None:
            return True
        with contextlib.suppress(FileExistsError):
            Path(self._folder, point.replace(" ", "-")).open("x").close()
            return True
        return False


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    threading.Event().wait()


def _fill() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


ACTIONS: Mapping[str, Callable[[], None]] = {
    "kill": _kill,  # the process, at once
    "hang": _hang,  # this thread, for ever
    "freeze": _freeze,  # the whole process, for ever
    "disk_full": _fill,
}


def _parse(text: str) -> tuple[str, Fault]:
    point, _, what = (part.strip() for part in text.partition("="))
    action, _, at = what.partition("@")
    if point not in POINTS or action not in ACTIONS or not (at or "1").isdecimal():
        raise ValueError(
            f"{VARIABLE}: {text.strip()!r} is not POINT=ACTION@TIMES. Points: "
            f"{', '.join(POINTS)}. Actions: {', '.join(ACTIONS)}."
        )
    return point, Fault(action, int(at or 1))


arm(os.environ.get(VARIABLE, ""), os.environ.get(FOLDER))
