"""Finds what a user's dotted path names: metrics and callbacks of their own."""

from __future__ import annotations

import importlib
import re

_DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_dotted_path(name: str) -> bool:
    """Return whether a name has the form ``package.module:name``; nothing is imported."""
    return _DOTTED_PATH.fullmatch(name) is not None


def load_dotted_path(path: str, option: str) -> object:
    """Import what a dotted path names.

    Args:
        path: As in ``my_package.module:name``.
        option: For messages: the option that the path was given in.

    Raises:
        ValueError: The path has another form, its module fails to be imported, or has no such name.
    """
    if not is_dotted_path(path):
        raise ValueError(
            f"{option}: {path!r} is not a dotted path. Give module and name with a colon between, "
            f"as in 'my_package.module:name'."
        )
    module_name, _, names = path.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise ValueError(
            f"{option}: {path!r}: the module {module_name} cannot be imported "
            f"({type(error).__name__}: {error}). Run where it can be found, install its package in "
            f"this environment (and on every node), or mend the path."
        ) from error
    for name in names.split("."):
        if not hasattr(found, name):
            raise ValueError(
                f"{option}: {path!r}: the module {module_name} has no {names}. Mend the path."
            )
        found = getattr(found, name)
    return found
