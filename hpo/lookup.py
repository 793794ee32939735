"""Finds a class by the name that a user wrote: a known short name, or a dotted path.

Knows neither samplers nor trainers in particular; those modules bring their tables.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import cast

from hpo.errors import SpecError
from trainers.protocol import Trainer, TrainerOptions

TRAINER_GROUP = "hpo.trainers"


def find(kind: str, name: str, known: Mapping[str, str]) -> object:
    """Return what ``name`` stands for: an entry of ``known``, or a dotted path.

    Args:
        kind: For messages: ``sampler``, ``pruner``, ``trainer``.
        name: A key of ``known``, or ``package.module:Name`` (``package.module.Name`` too).
        known: Short name -> dotted path.

    Raises:
        SpecError: The name is unknown, or its module cannot be imported.
    """
    path = known.get(name, name)
    if not path:
        raise SpecError(f"the {kind} {name!r} cannot be used here, inside another {kind}.")
    if ":" not in path and "." not in path:
        from search_spaces.problems import did_you_mean  # with Optuna, which no host needs

        raise SpecError(
            f"unknown {kind} {name!r}.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}. "
            f"For your own give a dotted path, as in 'my_package.module:MyClass'."
        )
    module_name, _, attribute = path.rpartition(":" if ":" in path else ".")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise SpecError(
            f"the {kind} {name!r} is no dotted path. Give module and name, as in "
            f"'my_package.module:MyClass'."
        )
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise SpecError(
            f"cannot import the {kind} {name!r}: {type(error).__name__}: {error}. Install its package "
            f"in this environment (and on every node), or mend the path."
        ) from error


def option_defaults(options: type[TrainerOptions]) -> dict[str, object]:
    """Return what a trainer's options are where a config leaves them out."""
    fields = options.model_fields.items()
    return {
        name: field.get_default(call_default_factory=True, validated_data={})
        for name, field in fields
        if not field.is_required()
    }


def find_trainer(name: str) -> type[Trainer]:
    """Return the trainer class for ``lora`` or a dotted path, without loading torch.

    Raises:
        SpecError: It is unknown, or lacks ``Options``.
    """
    known = {entry.name: entry.value for entry in entry_points(group=TRAINER_GROUP)}
    trainer = find("trainer", name, known)
    if not hasattr(trainer, "Options"):
        raise SpecError(
            f"the trainer {name!r} has no 'Options': it must follow trainers.protocol.Trainer."
        )
    return cast("type[Trainer]", trainer)
