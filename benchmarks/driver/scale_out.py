"""Fake trials on 1, 2, 4 and 8 simulated nodes: trials a second, and how long workers have none.

A step sleeps, so the nodes do not compete for this machine's cores; what they and the driver cost does.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.driver.searches import Search, joined_nodes, search
from benchmarks.driver.turnover import gaps
from benchmarks.figures import Figure, at_least, at_most, ratio

NODES = (1, 2, 4, 8)
TRIALS_A_NODE = 4
NUM_STEPS = 5
STEP_S = 0.5


def scale_figures(
    repetitions: int, tell: Callable[[str], None], nodes: tuple[int, ...] = NODES
) -> list[Figure]:
    """Return trials a second, the idle share and the driver's cost by the number of nodes."""
    figures: list[Figure] = []
    rates: dict[int, tuple[float, ...]] = {}
    for num_nodes in nodes:
        found: list[Search] = []
        with joined_nodes(num_nodes):
            for number in range(repetitions + 1):
                tell(f"{num_nodes} nodes: search {number} of {repetitions}")
                fixed = {"max_steps": NUM_STEPS, "step_s": STEP_S}
                found.append(search(TRIALS_A_NODE * num_nodes, fixed))
        counted = found[1:]
        rates[num_nodes] = tuple(map(trials_per_second, counted))
        length = f"trials of {NUM_STEPS * STEP_S:g} s, {num_nodes} nodes"
        figures += [
            Figure(f"trials a second: {length}", rates[num_nodes]),
            Figure(f"idle share of the workers: {length}", tuple(map(idle_share, counted))),
            Figure(
                f"driver's processor time of the workers' time: {length}",
                tuple(driver_share(one, num_nodes) for one in counted),
                at_most(0.02),
            ),
        ]
    least, most = min(nodes), max(nodes)
    if most > least:
        name = f"trials a second, {most} nodes / {least}"
        figures.append(ratio(name, rates[most], rates[least], at_least(0.8 * most / least)))
    return figures


def trials_per_second(one: Search) -> float:
    """Return the trials of a search by the time from the first one's begin to the last one's end."""
    begins = [event.at for event in one.events if event.what == "added"]
    ends = [event.at for event in one.events if event.what == "ended"]
    return len(ends) / (max(ends) - min(begins))


def idle_share(one: Search) -> float:
    """Return the part of the workers' time, each from its first trial to its last, without a trial."""
    idle = sum(gap - STEP_S for gap in gaps(one.events))  # the first step itself is work
    lived = 0.0
    for host in {event.host for event in one.events}:
        at = [e.at for e in one.events if e.host == host and e.what in ("added", "ended")]
        lived += max(at) - min(at)
    return idle / lived


def driver_share(one: Search, num_nodes: int) -> float:
    """Return what the driver's process computed, by the time that all workers had."""
    begins = [event.at for event in one.events if event.what == "added"]
    ends = [event.at for event in one.events if event.what == "ended"]
    return one.driver_cpu_s / (num_nodes * (max(ends) - min(begins)))
