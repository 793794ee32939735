"""Contestants take turns: A B C, A B C, ..., so that a slow minute of the machine hits all alike."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

Contestant = Callable[[], float]
"""Does its work once, and returns the seconds that count."""


def measure_in_turn(
    contestants: Mapping[str, Contestant], num_rounds: int
) -> dict[str, list[float]]:
    """Return each contestant's seconds, one value a round, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(num_rounds + 1):
        for name, contestant in contestants.items():
            gc.collect()  # of what the others left, outside of what is timed
            took = contestant()
            if number > 0:
                seconds[name].append(took)
    return seconds
