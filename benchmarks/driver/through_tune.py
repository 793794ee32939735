"""Reports that one driver takes in a second, all the way: host, Tune, study, verdict.

Eight fake trials at once on two simulated nodes, with steps that take no time; each step's report has a
checkpoint, which its host writes first.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.driver.searches import Search, joined_nodes, search
from benchmarks.figures import Figure, at_least

NUM_NODES = 2
TRIALS_A_NODE = 4
NUM_TRIALS = 16
NUM_STEPS = 40


def tune_figures(repetitions: int, tell: Callable[[str], None]) -> list[Figure]:
    """Return the rate, and what a report costs the driver's process."""
    found: list[Search] = []
    with joined_nodes(NUM_NODES):
        for number in range(repetitions + 1):
            tell(f"reports through Tune: search {number} of {repetitions}")
            fixed = {"max_steps": NUM_STEPS}
            found.append(search(NUM_TRIALS, fixed, gpu=1 / TRIALS_A_NODE))
    counted = found[1:]  # in the first one processes start and modules are imported
    return [
        Figure("reports a second through Tune", tuple(map(rate, counted)), at_least(100)),
        Figure(
            "driver's processor time a report through Tune, ms",
            tuple(1000 * one.driver_cpu_s / len(one.reported_at) for one in counted),
        ),
    ]


def rate(one: Search) -> float:
    """Return a search's reports a second while all of its places were taken."""
    tenth = len(one.reported_at) // 10
    seen = one.reported_at[tenth:-tenth]
    return (len(seen) - 1) / (seen[-1] - seen[0])
