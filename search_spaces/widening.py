"""May a study go on with an edited space? Only if its trials would still be trials of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from search_spaces.categorical import CategoricalParameter
from search_spaces.entries import Entry
from search_spaces.numeric import FloatParameter, IntParameter
from search_spaces.problems import Path, Problem
from search_spaces.tied import TiedParameter
from search_spaces.tree import ParameterTree
from search_spaces.values import same, shown

_NEW_STUDY = "This needs a new study: give the file another `study:` name."


def widening_problems(new: ParameterTree, old: ParameterTree) -> Iterator[Problem]:
    """Yield every change that is more than a wider range, another grid or other enqueued points."""
    for name in old.parameters:
        if name not in new.parameters:
            yield _problem(("space",), f"{name!r} was removed.")
    for name, entry in new.parameters.items():
        if name not in old.parameters:
            yield _problem(("space", name), f"{name!r} was added.", at_key=True)
        else:
            yield from _entry_problems(("space", name), entry, old.parameters[name])
    if [c.text for c in new.constraints] != [c.text for c in old.constraints]:
        yield _problem(("constraints",), "the constraints changed.")
    yield from _fixed_problems(new.fixed, old.fixed)


def _entry_problems(path: Path, new: Entry, old: Entry) -> Iterator[Problem]:
    if type(new) is not type(old):
        yield _problem(path, "its type changed.")
        return
    if new.when != old.when:
        yield _changed((*path, "when"), old.when, new.when)
    if isinstance(new, TiedParameter) and isinstance(old, TiedParameter):
        if not same(new.value, old.value):
            yield _changed((*path, "value"), old.value, new.value)
    elif isinstance(new, CategoricalParameter) and isinstance(old, CategoricalParameter):
        if not _same_choices(new, old):
            yield _changed((*path, "choices"), old.choices, new.choices)
    elif isinstance(new, FloatParameter | IntParameter):
        assert isinstance(old, FloatParameter | IntParameter)
        yield from _range_problems(path, new, old)


def _range_problems(
    path: Path, new: FloatParameter | IntParameter, old: FloatParameter | IntParameter
) -> Iterator[Problem]:
    if new.log != old.log:
        yield _changed((*path, "log"), old.log, new.log)
    if new.step != old.step:
        yield _changed((*path, "step"), old.step, new.step)
    if new.low > old.low:
        yield _narrowed((*path, "low"), old.low, new.low)
    elif new.step == old.step and not _holds(new, old.low):
        message = f"low went from {old.low} to {new.low}, which is no number of steps."
        yield Problem((*path, "low"), f"{message} Widen it by whole steps of {new.step}.")
    if new.high < old.high:
        yield _narrowed((*path, "high"), old.high, new.high)


def _holds(new: FloatParameter | IntParameter, old_low: float) -> bool:
    try:
        new.stored(min(old_low, new.high))
    except ValueError:
        return False
    return True


def _same_choices(new: CategoricalParameter, old: CategoricalParameter) -> bool:
    # A mapping's order counts too: Optuna stores a choice by its index.
    return same(new.choices, old.choices) and same(new.points(), old.points())


def _fixed_problems(new: Mapping[str, object], old: Mapping[str, object]) -> Iterator[Problem]:
    for name in new.keys() & old.keys():
        if not same(new[name], old[name]):
            yield _problem(
                ("fixed", name),
                f"went from {shown(old[name])} to {shown(new[name])}, and the space reads it.",
            )


def _narrowed(path: Path, old: float, new: float) -> Problem:
    message = f"{path[-1]} went from {old} to {new}: a range may only widen."
    return _problem(path, message)


def _changed(path: Path, old: object, new: object) -> Problem:
    return _problem(path, f"{path[-1]} changed from {shown(old)} to {shown(new)}.")


def _problem(path: Path, message: str, at_key: bool = False) -> Problem:
    return Problem(path, f"{message} {_NEW_STUDY}", at_key)
