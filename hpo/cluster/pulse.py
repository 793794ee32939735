"""When a host was last called, and since when its trainer has not come back."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
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


def where_is(name: str) -> str:
    """Return the stack of a thread of this process, by its name."""
    frames = sys._current_frames()
    stacks = (
        traceback.format_stack(frames[thread.ident])
        for thread in threading.enumerate()
        if thread.name == name and thread.ident in frames
    )
    return "".join(line for stack in stacks for line in stack)
