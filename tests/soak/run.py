"""One `hpo run` or `hpo resume` with everything that it starts: found, watched and killed by its pids."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from tests.integration.command import begin

PATIENCE_S = 180.0
VICTIMS: Mapping[str, tuple[str, ...]] = {
    "driver": (),
    "host": ("ray::ModelHost",),
    "raylet": ("raylet",),
    "gcs_server": ("gcs_server",),
}
"""Who is killed, by the name of the program or the title that Ray gives a process."""


class TooLongError(Exception):
    """Something that must happen does not."""


class Run:
    """A driver and the processes below it.

    Attributes:
        driver: The process of `hpo`.
    """

    def __init__(self, folder: Path, *args: str, env: Mapping[str, str]) -> None:
        """Start `hpo` with these arguments; what it says goes to ``hpo.log``."""
        with (folder / "hpo.log").open("a") as log:
            log.write(f"--- hpo {' '.join(args)}\n")
        self.driver = begin(folder, *args, env=env)
        self._root = psutil.Process(self.driver.pid)
        self._seen: dict[tuple[int, float], psutil.Process] = {}

    @property
    def is_over(self) -> bool:
        """Whether the driver has ended."""
        return self.driver.poll() is not None

    def watch(self) -> None:
        """Remember the processes that are there now: later they may have lost their parent."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self._root.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._seen[process.pid, process.create_time()] = process

    def left(self) -> list[str]:
        """Return the processes that are still there, as their command lines."""
        return [_line(process) for process in self._living()]

    def _living(self) -> list[psutil.Process]:
        return sorted(filter(_lives, self._seen.values()), key=lambda process: process.pid)

    def find(self, kind: str) -> list[psutil.Process]:
        """Return the living processes of a kind."""
        if kind == "driver":
            return [] if self.is_over else [self._root]
        self.watch()
        wanted = VICTIMS[kind]
        return [p for p in self._living() if _title(p).startswith(wanted)]

    def wait_until_over(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait until the driver has ended; return its exit code."""
        wait_until(lambda: self.is_over, "the driver ends", timeout_s)
        code = self.driver.poll()
        assert code is not None
        return code

    def wait_until_still(self, timeout_s: float = 60.0) -> None:
        """Wait until nothing trains any more below a driver that is dead.

        Ray's own agents take a minute longer to notice.

        Raises:
            TooLongError: A host lives on.
        """
        wait_until(lambda: not self.find("host"), "the hosts end", timeout_s)

    def wait_until_alone(self, timeout_s: float) -> list[str]:
        """Wait until nothing that the driver started is left; return what is."""
        with contextlib.suppress(TooLongError):
            wait_until(lambda: not self.left(), "its processes end", timeout_s)
        return self.left()

    def end(self) -> None:
        """Kill all that is left."""
        self.watch()
        for process in (self._root, *self._seen.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.driver.wait()


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())[:120]
    return ""


def _title(process: psutil.Process) -> str:
    """Return the name of a process's program without its folders, or Ray's title: ray::ModelHost."""
    return _line(process).partition(" ")[0].rpartition("/")[2]


def kill(process: psutil.Process) -> None:
    """Kill -9 a process, and wait until it is dead."""
    process.send_signal(signal.SIGKILL)
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(30)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait for a condition.

    Raises:
        TooLongError: It does not come.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TooLongError(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(0.05)
