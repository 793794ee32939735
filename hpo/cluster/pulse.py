"""When a host was last called, and since when its trainer has not come back."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import sys
import time
from collections.abc import Iterator


class Pulse:
    """Two clocks that a host's threads set, and its watch reads."""

    def __init__(self, stall_timeout: float, patience_s: float) -> None:
        """Begin now.

        Args:
            stall_timeout: Seconds that the trainer may take over one call.
            patience_s: Seconds that callers may stay away.
        """
        self._stall_timeout = stall_timeout
        self._patience_s = patience_s
        self._called_at = time.monotonic()
        self._busy_since: float | None = None

    def called(self) -> None:
        """Note that somebody has called."""
        self._called_at = time.monotonic()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Note that the body is on, and that it has come to its end; waiting for work is no body."""
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    def wait_for_end(self) -> str:
        """Wait until there is a reason to end; return how it hangs, or nothing if nobody calls."""
        turn_s = min(1.0, self._patience_s / 4, self._stall_timeout / 8)
        while time.monotonic() - self._called_at < self._patience_s:
            since = self._busy_since
            if since is not None and time.monotonic() - since > self._stall_timeout:
                return f"stalled: no step for {self._stall_timeout:g} s"
            time.sleep(turn_s)
        return ""

    @staticmethod
    def dump_threads() -> None:
        """Write to stderr where each thread of this process is."""
        with contextlib.suppress(io.UnsupportedOperation):  # a stderr without a descriptor
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
