"""Draws inputs from all surfaces in turn of their weight, tries each, and counts."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.guard import Canary, attempt
from tests.fuzz.surface import Surface


@dataclass(frozen=True)
class Failure:
    """An input that broke the property.

    Attributes:
        surface: What read it.
        name: Of what it was made.
        number: Of the input, under its run's seed.
        content: The input.
        what: What happened.
    """

    surface: str
    name: str
    number: int
    content: bytes
    what: str

    @property
    def kind(self) -> str:
        """The same for inputs that fail in the same place."""
        lines = [line.strip() for line in self.what.splitlines() if line.strip()]
        places = [line for line in lines if line.startswith("File ")]
        return f"{self.surface}: {lines[-1].split(':')[0]} {places[-1] if places else ''}"


@dataclass
class Outcome:
    """What a run came to."""

    num_files: int = 0
    seconds: float = 0.0
    by_surface: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    @property
    def line(self) -> str:
        return f"files {self.num_files}, failures {len(self.failures)}, seconds {self.seconds:.1f}"


def run(
    surfaces: Sequence[Surface], num_files: int, seed: int, folder: Path, canary: Canary
) -> Outcome:
    """Try so many inputs; the same seed tries the same."""
    outcome = Outcome()
    begun = time.monotonic()
    weights = [surface.weight for surface in surfaces]
    for number in range(num_files):
        rng = random.Random(f"{seed} {number}")
        surface = rng.choices(surfaces, weights)[0]
        here = folder / "input"
        here.mkdir(parents=True)
        try:
            tried = surface.attempt(here, rng)
            what = attempt(tried.action, tried.allowed, canary)
        finally:
            shutil.rmtree(here, ignore_errors=True)
        outcome.num_files += 1
        outcome.by_surface[surface.name] += 1
        if what is not None:
            failure = Failure(surface.name, tried.name, number, tried.content, what)
            outcome.failures.append(failure)
    outcome.seconds = time.monotonic() - begun
    return outcome
