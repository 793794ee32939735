"""Tune's callback that lets the driver act while Tune's loop runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune


class Heart(tune.Callback):
    """Calls back at every turn of Tune's loop, several times a second."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Call back."""
        self._beat()

    def __getstate__(self) -> dict[str, object]:
        """Pickle to nothing: Tune writes its callbacks to the disk, and this one holds a study."""
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Come back as nothing."""
