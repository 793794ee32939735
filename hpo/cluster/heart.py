"""Tune's callback that lets the driver act while Tune's loop runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune


class Heart(tune.Callback):
    """Calls back at every turn of Tune's loop, several times a second."""

    def __init__(self, on_turn: Callable[[list[Any]], None]) -> None:
        """Call ``on_turn`` with Tune's trials."""
        self._on_turn = on_turn

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Call back."""
        self._on_turn(trials)

    def __getstate__(self) -> dict[str, object]:
        """Pickle to nothing: Tune writes its callbacks to the disk, and this one holds a study."""
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Come back as nothing."""
