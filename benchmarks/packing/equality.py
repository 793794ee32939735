"""Equality: a trial in a pack that changes around it goes the way that it goes alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.figures import Figure, at_least, at_most
from benchmarks.packing.cases import TEXT_FILE, Case, read_text
from benchmarks.packing.course import Course
from benchmarks.packing.guests import GUESTS, SCHEDULE, Guest
from benchmarks.packing.pack import Pack
from trainers.lora import LoraTrainer
from trainers.protocol import Trainer

TOLERANCE = 1e-6
"""Of a loss in another number format than float32, relative."""

NUM_STEPS = 4
"""From so many equal states a step is made in the pack and alone."""

SAVED_AFTER = 3
"""Rounds of the first pack before all of it is saved and goes on elsewhere."""

_LIMIT = 100

Courses = dict[int, Course]


class Visits:
    """A trainer that guests visit, and the courses that they take there."""

    def __init__(self, trainer: Trainer, fixed: Mapping[str, object], courses: Courses) -> None:
        self._trainer = trainer
        self._fixed = fixed
        self._courses = courses
        self._guests: dict[int, Guest] = {}

    @property
    def present(self) -> list[int]:
        """The guests that are here."""
        return list(self._guests)

    def join(self, key: int, guest: Guest, resume_from: Path | None = None) -> None:
        """Let a guest join, from its beginning or from where it was saved."""
        self._courses.setdefault(key, Course())
        self._trainer.add(key, {**self._fixed, **guest.options}, resume_from)
        self._guests[key] = guest

    def advance(self) -> None:
        """Make one step of all that are here; let those leave whose time has come."""
        for report in self._trainer.advance():
            self._courses[report.trial].add(report)
            leaves = self._guests[report.trial].leaves
            if report.end is not None or report.validation == leaves:
                self._trainer.remove(report.trial)
                del self._guests[report.trial]

    def save_all(self, folder: Path) -> dict[int, Path]:
        """Write every guest that is here; return where."""
        folders = {key: folder / str(key) for key in self._guests}
        for key, own in folders.items():
            self._trainer.save(key, own)
        return folders

    def stay_to_the_end(self) -> None:
        """Advance until all have left."""
        for _ in range(_LIMIT):
            if not self._guests:
                return
            self.advance()
        raise AssertionError(f"the trials {self.present} never end")


def equality_figures(model: str, tell: Callable[[str], None]) -> list[Figure]:
    """Return the figures on a real model: whole courses in float32, single steps otherwise."""
    fixed: dict[str, object] = {
        "model_name_or_path": model,
        "train_file": str(TEXT_FILE),
        "validation_file": str(TEXT_FILE.with_name("validation.json")),
        "eval_max_samples": 2,
        "max_length": 128,
        "dtype": "float32",
        **SCHEDULE,
    }
    figures = course_figures(fixed, GUESTS, tell)
    for name, quantized in (("bfloat16", False), ("NF4", True)):
        tell(f"equality: single steps in {name}")
        pack = Pack(model, Case(len(GUESTS), 1, 32, quantized), read_text())
        figures += step_figures(name, pack)
    return figures


def course_figures(
    fixed: Mapping[str, object], guests: Sequence[Guest], tell: Callable[[str], None]
) -> list[Figure]:
    """Return how many trials go the same way in a pack, and when saved into another one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = {**fixed, "dataset_prepared_path": str(folder / "tokenized")}
        tell("equality: each trial alone")
        alone = courses_alone(whole, guests)
        tell("equality: in one pack")
        together = courses_in_a_pack(whole, guests)
        tell("equality: saved, and resumed in two other packs")
        resumed = courses_resumed(whole, guests, folder)
    figures: list[Figure] = []
    for how, found in {"in a pack": together, "resumed in other packs": resumed}.items():
        apart = {key: found[key].difference(alone[key]) for key in alone}
        equal = sum(difference == 0.0 for difference in apart.values())
        unequal = [key for key, difference in apart.items() if difference]
        note = f"not the trials {', '.join(map(str, unequal))}" if unequal else ""
        figures += [
            Figure(
                f"float32: trials of {len(guests)} that are bit-equal {how}",
                (float(equal),),
                at_least(len(guests)),
                note,
            ),
            Figure(f"float32: largest relative difference {how}", (max(apart.values()),)),
        ]
    diverged = [key for key, course in alone.items() if course.end[0] == "diverged"]
    note = ", ".join(str(alone[key].end[1]).split(";")[0] for key in diverged)
    figures.append(
        Figure("float32: trials that diverged", (float(len(diverged)),), at_least(1), note)
    )
    return figures


def step_figures(name: str, pack: Pack) -> list[Figure]:
    """Return how far a step's losses and gradients in a pack are from those alone.

    Both begin at the same state, so that nothing adds up.
    """
    losses, gradients = [], []
    for _ in range(NUM_STEPS):
        loss, gradient = pack.difference_to_alone()
        losses.append(loss)
        gradients.append(gradient)
        pack.advance()
    return [
        Figure(
            f"{name}: largest relative difference of a step's loss",
            (max(losses),),
            at_most(TOLERANCE),
        ),
        Figure(f"{name}: largest relative difference of a step's gradient", (max(gradients),)),
    ]


def courses_alone(fixed: Mapping[str, object], guests: Iterable[Guest]) -> Courses:
    """Return the courses of trials that are never two at a time."""
    courses: Courses = {}
    visits = Visits(LoraTrainer(fixed, "cpu"), fixed, courses)
    for key, guest in enumerate(guests):
        visits.join(key, guest)
        visits.stay_to_the_end()
    return courses


def courses_in_a_pack(fixed: Mapping[str, object], guests: Sequence[Guest]) -> Courses:
    """Return the courses of trials that join and leave one pack at their rounds."""
    courses: Courses = {}
    visits = Visits(LoraTrainer(fixed, "cpu"), fixed, courses)
    _let_join(visits, guests, 0, 1 + max(guest.joins for guest in guests))
    visits.stay_to_the_end()
    return courses


def courses_resumed(fixed: Mapping[str, object], guests: Sequence[Guest], folder: Path) -> Courses:
    """Return the courses of trials that are all saved on the way, and go on in two other packs.

    The second pack has the trials of odd number, the third one the others; each takes its trials in
    the opposite order, a round apart, and the last newcomers between them.
    """
    courses: Courses = {}
    first = Visits(LoraTrainer(fixed, "cpu"), fixed, courses)
    _let_join(first, guests, 0, SAVED_AFTER)
    saved = first.save_all(folder)
    late = {key: guest for key, guest in enumerate(guests) if guest.joins >= SAVED_AFTER}
    for parity in (1, 0):
        visits = Visits(LoraTrainer(fixed, "cpu"), fixed, courses)
        for key in sorted([*saved, *late], reverse=True):
            if key % 2 == parity:
                visits.join(key, guests[key], saved.get(key))
                visits.advance()
        visits.stay_to_the_end()
    return courses


def _let_join(visits: Visits, guests: Sequence[Guest], first: int, end: int) -> None:
    """Advance through these rounds, each one's newcomers joining before it."""
    for number in range(first, end):
        for key, guest in enumerate(guests):
            if guest.joins == number:
                visits.join(key, guest)
        visits.advance()
