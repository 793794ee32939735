"""What an edited file may change in a study that has begun."""

from __future__ import annotations

from hpo.errors import StudyError
from hpo.lookup import find_trainer
from hpo.spec import StudySpec

MAY_CHANGE = (
    "budget",
    "resources",
    "max_concurrent",
    "keep_checkpoints",
    "lease_s",
    "ray_address",
    "report_to",
    "run_name",
    "enqueue",
    "space",
)
"""Fields that no stored trial depends on; of the space, only wider ranges."""


def check_edit(stored: StudySpec, edited: StudySpec) -> None:
    """Check that stored trials and those to come can be compared.

    Raises:
        StudyError: Lists every change that needs a new study.
    """
    problems = []
    for name in StudySpec.model_fields:
        old, new = getattr(stored, name), getattr(edited, name)
        if name in MAY_CHANGE or old == new:
            continue
        if name == "fixed":
            old = _completed(stored, edited)
            for key in sorted({*old, *new}):
                if old.get(key) != new.get(key):
                    problems.append(
                        f"fixed.{key}: is {old.get(key)!r}, the file has {new.get(key)!r}"
                    )
        elif name != "constraints":  # the space compares those
            problems.append(f"{name}: is {_plain(old)!r}, the file has {_plain(new)!r}")
    widened = edited.search_space.widened_from(stored.search_space)
    problems += [f"{'.'.join(map(str, p.path))}: {p.message}" for p in widened]
    if problems:
        raise StudyError(
            f"the study {stored.study!r} has trials that the edited file does not fit:\n  "
            + "\n  ".join(problems)
            + f"\nGive the file another 'study:' name for a new study, or type "
            f"`hpo resume {stored.study}` to go on without the file. Ranges may widen; budget, "
            f"resources and 'enqueue:' may change."
        )


def _completed(stored: StudySpec, edited: StudySpec) -> dict[str, object]:
    """Return the stored options as a file of today is read: studies of old lack what follows."""
    options = find_trainer(stored.trainer).Options
    completed = options.for_metric(stored.fixed, stored.metric, stored.direction)
    return {
        name: value
        for name, value in completed.items()
        if name in stored.fixed or edited.fixed.get(name) == value
    }


def _plain(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if dump is not None else value
