"""What happens to rows that cannot be used: the first one ends all, or they are left out and counted."""

from __future__ import annotations

from typing import Literal

NUM_SHOWN = 3
"""How many messages of rows left out are shown."""


class BadRows:
    """Takes the errors of single rows.

    Attributes:
        num_skipped: Rows left out so far.
        messages: What was wrong with the first few of them.
    """

    def __init__(self, policy: Literal["error", "skip"] = "error") -> None:
        self._skip = policy == "skip"
        self.num_skipped = 0
        self.messages: list[str] = []

    def refuse(self, error: ValueError) -> None:
        """Take in a row's error; raise it unless bad rows are left out."""
        if not self._skip:
            raise error
        self.num_skipped += 1
        if len(self.messages) < NUM_SHOWN:
            self.messages.append(str(error))

    @property
    def notes(self) -> list[str]:
        """What the user is told."""
        if not self.num_skipped:
            return []
        rows = "bad row is" if self.num_skipped == 1 else "bad rows are"
        shown = "" if self.num_skipped <= NUM_SHOWN else f" (the first {NUM_SHOWN})"
        return [f"{self.num_skipped} {rows} left out{shown}: {' | '.join(self.messages)}"]
