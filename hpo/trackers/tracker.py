"""What every tracker does: one run a trial, its points, its end. Values and protocols, no SDK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Run:
    """A trial as trackers see it.

    Attributes:
        study: Groups the runs.
        number: The trial's.
        name: For people.
        key: The same for life, and for no other trial of any study.
        folder: Where trackers put what they write: the study's.
        log_folder: Where the trial's log lies.
        config: The trainer's whole config.
        metric: What the study goes by; None: nothing is validated.
    """

    study: str
    number: int
    name: str
    key: str
    folder: Path
    log_folder: Path
    config: Mapping[str, object]
    metric: str | None


@dataclass(frozen=True)
class Point:
    """What is known of one optimizer step: ``train/loss``, ``eval/loss``, ..."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Ending:
    """How a trial ended.

    Attributes:
        state: COMPLETE, PRUNED or FAIL.
        reason: finished, stopped_early, pruned, diverged, out_of_memory, failed.
        message: Why it diverged, failed or found no room.
        best: Value of the study's metric at the best validation.
    """

    state: str
    reason: str
    message: str | None = None
    best: float | None = None

    @property
    def is_good(self) -> bool:
        """Whether nothing went wrong."""
        return self.reason in ("finished", "stopped_early", "pruned")


class OpenRun(Protocol):
    """A run that is being written. What is logged has reached the disk or the SDK on return."""

    address: str
    """Where people look at it; empty if nowhere."""

    def log(self, points: Sequence[Point]) -> None:
        """Add points, whose steps rise."""
        ...

    def end(self, ending: Ending, best: Mapping[str, float]) -> None:
        """Close the run for good; ``best`` is ``best/<metric>``, or empty."""
        ...

    def leave(self) -> None:
        """Close the run of a trial that will go on later."""
        ...


class Tracker(Protocol):
    """An SDK, imported when it is made."""

    def __init__(self, folder: Path, study: str) -> None:
        """Import the SDK, which by default writes into the study's folder alone."""
        ...

    def open(self, run: Run, last_step: int | None) -> OpenRun:
        """Begin a run, or go on with one that has logged up to a step."""
        ...


def flat(config: Mapping[str, object]) -> dict[str, str | int | float | bool]:
    """Return a config as hyperparameters: scalars stay, lists and mappings become text."""
    return {
        name: value if isinstance(value, str | int | float | bool) else str(value)
        for name, value in config.items()
        if value is not None
    }
