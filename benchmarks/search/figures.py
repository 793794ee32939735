"""Figures of whole searches, out of what every contestant took."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.figures import Figure, Goal, at_most, ratio
from benchmarks.search.contestants import LIMIT, OURS, Done

WALL_GOAL = 0.65
WARM_GOAL = 0.9
MEMORY_GOAL = 0.5
LOSS_GOAL = 1.01
TIME_GOAL = 0.5
DRIVER_GOAL = 0.02
NEAR = 1.01
"""A loss is near the best one if it is at most this times it."""

Rounds = Mapping[str, Sequence[Done]]
"""Of each contestant, what it did in each round."""


def wall(done: Done) -> float:
    """Return seconds from the command to its end."""
    return done.spent.wall_s


def warm(done: Done) -> float:
    """Return seconds without start-up and end."""
    return done.course.warm_s


def peak(done: Done) -> float:
    """Return MiB of all processes at one moment."""
    return done.spent.peak_mib


def equal_figures(rounds: Rounds) -> list[Figure]:
    """Return the figures where all do the same steps and validations."""
    peers = [name for name in rounds if name not in (OURS, LIMIT)]
    figures = []
    if peers:
        best = fastest(rounds, peers)
        goals = {best: at_most(WALL_GOAL)}
        notes = {best: "the fastest peer"}
        figures += [
            _against(rounds, name, "wall time", wall, goals.get(name), notes.get(name, ""))
            for name in peers
        ]
    if LIMIT in rounds:
        note = "from the first trial's beginning to the last one's end: model loaded, all imported"
        figures.append(
            _against(rounds, LIMIT, "time without start-up", warm, at_most(WARM_GOAL), note)
        )
    shares = tuple(done.spent.own_share(*done.course.warm) for done in rounds[OURS])
    figures.append(
        Figure(
            f"{OURS}: driver's share of the processor time without start-up",
            shares,
            at_most(DRIVER_GOAL),
        )
    )
    return figures + _shown(rounds)


def own_figures(rounds: Rounds) -> list[Figure]:
    """Return the figures where each samples and prunes by itself."""
    peers = [name for name in rounds if name != OURS]
    losses = {name: [done.course.best_loss for done in rounds[name]] for name in rounds}
    figures = []
    if peers:
        best = min(peers, key=lambda name: statistics.median(losses[name]))
        targets = [NEAR * loss for loss in losses[best]]
        figures = [
            ratio(
                f"best loss: {OURS} / {best}",
                losses[OURS],
                losses[best],
                at_most(LOSS_GOAL),
                "the peer with the least loss",
            ),
            ratio(
                f"time until the loss was within 1 % of that peer's best: {OURS} / {best}",
                _times_to(rounds[OURS], targets),
                _times_to(rounds[best], targets),
                at_most(TIME_GOAL),
            ),
        ]
        figures += [
            ratio(
                f"the same time: {OURS} / {name}",
                _times_to(rounds[OURS], targets),
                _times_to(rounds[name], targets),
                note="0: that one never was",
            )
            for name in peers
            if name != best
        ]
        figures += [_against(rounds, name, "wall time", wall) for name in peers]
    for name, of_name in losses.items():
        figures.append(Figure(f"{name}: best loss", tuple(of_name)))
    return figures + _shown(rounds)


def memory_figures(rounds: Rounds, concurrency: int) -> list[Figure]:
    """Return the peaks of memory where all have so many trials side by side."""
    figures = [
        _against(
            rounds,
            name,
            f"peak memory, {concurrency} trials side by side",
            peak,
            at_most(MEMORY_GOAL) if name == "Ray Tune" else None,
        )
        for name in rounds
        if name != OURS
    ]
    what = f"peak MiB, {concurrency} trials side by side"
    return figures + [_median_of(rounds, name, what, peak) for name in rounds]


def arrangement_figures(found: Mapping[str, Mapping[str, Done]]) -> list[Figure]:
    """Return the wall time of each contestant in each arrangement, by the fastest of its own."""
    figures = []
    for name, by_arrangement in found.items():
        measure = warm if name == LIMIT else wall
        least = min(map(measure, by_arrangement.values()))
        for arrangement, done in by_arrangement.items():
            figures.append(Figure(f"{name}, {arrangement}", (measure(done) / least,)))
    return figures


def fastest(rounds: Rounds, names: Sequence[str]) -> str:
    """Return who took the least wall time."""
    return min(names, key=lambda name: statistics.median(map(wall, rounds[name])))


def _shown(rounds: Rounds) -> list[Figure]:
    """Return each contestant's own numbers: seconds of this machine, for proportion only."""
    figures = []
    for name in rounds:
        figures += [
            _median_of(rounds, name, "wall s", wall),
            _median_of(rounds, name, "s without start-up", warm),
            _median_of(rounds, name, "s until the first step", lambda d: d.course.first_step_s),
            _median_of(rounds, name, "processor s", lambda d: d.spent.cpu_s),
            _median_of(rounds, name, "peak MiB", peak),
            _median_of(rounds, name, "optimizer steps", lambda d: d.course.num_steps),
        ]
    return figures


def _median_of(rounds: Rounds, name: str, what: str, measure: Callable[[Done], float]) -> Figure:
    return Figure(f"{name}: {what}", tuple(map(measure, rounds[name])))


def _against(
    rounds: Rounds,
    name: str,
    what: str,
    measure: Callable[[Done], float],
    goal: Goal | None = None,
    note: str = "",
) -> Figure:
    ours, theirs = ([measure(done) for done in rounds[who]] for who in (OURS, name))
    return ratio(f"{what}: {OURS} / {name}", ours, theirs, goal, note)


def _times_to(done: Sequence[Done], targets: Sequence[float]) -> list[float]:
    return [of.course.seconds_to(target) for of, target in zip(done, targets, strict=True)]
