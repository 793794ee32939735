"""Tries one input: within a time, within memory, and with an alarm for any code that it starts.

Knows nothing of what is tried.
"""

from __future__ import annotations

import contextlib
import gc
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

TIME_LIMIT_S = 2.0
"""Of the processor's time: the machine may be busy."""

HANG_LIMIT_S = 30.0
"""By the clock, for what waits."""

MEMORY_LIMIT_BYTES = 1 << 30
"""Above what the process had when the input was tried."""

ALARMING = frozenset(
    {
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.kill",
        "pickle.find_class",
        "pty.spawn",
        "socket.bind",
        "socket.connect",
        "subprocess.Popen",
        "urllib.Request",
        "webbrowser.open",
    }
)
"""Audit events of Python that no reading of a file may cause: a process, a connection, a pickle."""

NOT_ALARMING = ("uname",)
"""Started by libraries as they are imported, whatever was read."""


class TooSlowError(BaseException):
    """The time is up; no handler of errors catches it."""


class Canary:
    """Sings when code runs that an input has brought."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seen: list[str] = []
        self._armed = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if self._armed and event in ALARMING and not str(args[0]).startswith(NOT_ALARMING):
            self.seen.append(f"{event}{args!r:.200}")

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        self.seen.clear()
        self._armed = True
        try:
            yield
        finally:
            self._armed = False


def attempt(
    action: Callable[[], object],
    allowed: tuple[type[Exception], ...],
    canary: Canary,
    hang_limit_s: float = HANG_LIMIT_S,
) -> str | None:
    """Do something with an input; return what it did that no input may do, or None.

    Args:
        action: Reads the input.
        allowed: The errors that an input may end in, each with a message.
        canary: Heard afterwards.
        hang_limit_s: Seconds by the clock.
    """
    failure = None
    try:
        with canary.listening(), _time_limit(hang_limit_s), _memory_limit():
            action()
    except allowed as error:
        if not str(error).strip():
            failure = f"{type(error).__name__} without a message"
    except TooSlowError:
        failure = f"took too long:\n{traceback.format_exc(limit=-6)}"
    except MemoryError:
        failure = f"took more than {MEMORY_LIMIT_BYTES} bytes:\n{traceback.format_exc(limit=-6)}"
    except BaseException:
        failure = traceback.format_exc(limit=-8)
    if canary.seen:
        failure = f"started {canary.seen[0]}"
    if canary.file.exists():
        canary.file.unlink()
        failure = "ran code of the input: the canary's file is there"
    return failure


@contextlib.contextmanager
def _time_limit(hang_limit_s: float) -> Iterator[None]:
    def ring(_signal: int, _frame: object) -> None:
        raise TooSlowError

    before = [(number, signal.signal(number, ring)) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT_S)
    signal.setitimer(signal.ITIMER_REAL, hang_limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before:
            signal.signal(number, handler)


@contextlib.contextmanager
def _memory_limit() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    except MemoryError:
        gc.collect()
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
