"""How long each proxy has said nothing, and the end of those that are silent for too long."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

MARGIN_S = 10.0
"""A proxy may be so much later than the host that it waits for: a busy driver hears it late."""

MOST_PER_TURN_S = 2.0
"""A driver that was itself away (stopped, asleep, swapped out) blames nobody for that time."""


class Silence:
    """Listens to the proxies of one run."""

    def __init__(self, stall_timeout: float) -> None:
        """Nobody has been heard yet.

        Args:
            stall_timeout: Seconds after which silence is a stall; there is a margin on top.
        """
        self.limit_s = stall_timeout + MARGIN_S
        self._silent_s: dict[str, float] = {}
        self._turned_at = time.monotonic()

    def heard(self, trial: Any) -> None:
        """Note that a Tune trial's proxy has answered."""
        self._silent_s[trial.trial_id] = 0.0

    def too_long(self, trials: Iterable[Any]) -> list[Any]:
        """Return the Tune trials whose proxies exist and have been silent for too long."""
        now = time.monotonic()
        passed = min(now - self._turned_at, MOST_PER_TURN_S)
        self._turned_at = now
        # RUNNING, or PENDING with a proxy that is told of it: Tune takes the proxy away in the end.
        held = [trial for trial in trials if trial.temporary_state.ray_actor is not None]
        self._silent_s = {
            trial.trial_id: self._silent_s.get(trial.trial_id, 0.0) + passed for trial in held
        }
        return [trial for trial in held if self._silent_s[trial.trial_id] > self.limit_s]
