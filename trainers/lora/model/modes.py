"""Whether a model trains or evaluates. To switch it walks over thousands of modules: only if it must."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def train(model: Any) -> None:
    """Let a model train; what is added to one that trains does so too."""
    if not model.training:
        model.train()


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Within this, a model evaluates; afterwards it is in the mode in which it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
