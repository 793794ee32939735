"""Puts something else in the place of what Ray has no option for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replaced(module: Any, name: str, value: object) -> Iterator[None]:
    """Within this, a module's ``name`` is ``value``."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
