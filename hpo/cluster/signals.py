"""Signals as requests: the first asks a run to save and leave, the second to leave at once."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any


class Signals:
    """Catches Ctrl-C, SIGTERM and a closed terminal while it is entered.

    Attributes:
        count: How many have come.
        first: The name of the first.
        since: When that came, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: str | None = None
        self.since = 0.0
        self._interrupts = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        """Catch them from now on."""
        wanted = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup wants to go on
            wanted.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._catch) for number in wanted}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Leave them to whom they belonged before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep SIGTERM for us although the body takes it for itself; one that comes now comes later.

        Threads that the body starts never get it. Processes should be started with `unblocked`.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            yield
        finally:
            if signal.SIGTERM in self._before:
                signal.signal(signal.SIGTERM, self._catch)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @contextlib.contextmanager
    def held_off(self) -> Iterator[None]:
        """Let the body come to its end, however often somebody asks: it is what leaving takes."""
        before, self._interrupts = self._interrupts, False
        try:
            yield
        finally:
            self._interrupts = before

    @staticmethod
    def unblocked() -> None:
        """Let a process that begins have SIGTERM, whatever its parent keeps."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def _catch(self, number: int, _frame: object) -> None:
        self.count += 1
        if self.first is None:
            self.first = signal.Signals(number).name
            self.since = time.monotonic()
        if self.count == 2 and self._interrupts:
            raise KeyboardInterrupt
