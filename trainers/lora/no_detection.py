"""Loads transformers' losses without SciPy, which only those that detect objects in images need.

transformers loads all its losses with its first model, and SciPy with them: a third of a second of each
host's start, and 30 MiB. Seen in transformers 5.23, ``loss_for_object_detection``; can go when SciPy is
loaded where it is called.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any


def import_losses() -> None:
    """Import them, unless they are there already."""
    utilities: Any = importlib.import_module("transformers.utils")
    is_there = utilities.is_scipy_available
    utilities.is_scipy_available = lambda: False
    try:
        with contextlib.suppress(ImportError):  # where they are elsewhere, they are as they are
            importlib.import_module("transformers.loss.loss_utils")
    finally:
        utilities.is_scipy_available = is_there
