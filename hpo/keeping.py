"""Which checkpoints a study keeps on the disk; told by the study.

A running trial keeps its best, its latest and the one before; of the finished ones the best few keep
theirs. A ranking only ever pushes a trial down, so what cannot win now can never win again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hpo.checkpoints import CheckpointStore
from hpo.studies import TrialRecord

LEFTOVER_AGE_S = 60.0
"""Unfinished checkpoints that old are a dead writer's; a younger one may still be written."""


class Keeper:
    """The checkpoints of one study."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._kept: dict[int, int] = {}

    def thin_out(self, trial: TrialRecord) -> None:
        """Delete a running trial's checkpoints but its best, its latest and the one before.

        One that is newer than the newest report stays: its report is under way and may be the best.
        """
        steps = self._store.steps(trial.number)
        filed = [step for step in steps if step <= trial.step]
        keep = {step for step in steps if step > trial.step} | {*filed[-2:], trial.best_step}
        self._store.remove(trial.number, set(steps) - keep)

    def sweep_trial(self, number: int, winners: Mapping[int, int]) -> None:
        """Delete what cannot win any more since a trial has ended: of it, or of whom it pushed out.

        Args:
            number: Of the trial that has just ended.
            winners: The trials that may still win, each with the step of its best checkpoint.
        """
        for gone in {number, *self._kept} - winners.keys():
            self._store.delete(gone)
        if number in winners:
            self._store.delete(number, {winners[number]})
        self._kept = dict(winners)

    def sweep(self, is_over: Callable[[int], bool], winners: Mapping[int, int]) -> None:
        """Delete everything of finished trials that cannot win any more, and what dead writers left."""
        for number, steps in self._store.listing().items():
            if is_over(number):
                keep = {winners[number]} if number in winners else set()
                self._store.remove(number, set(steps) - keep)
                if steps or self._store.is_local:  # at a URL each look is a request
                    self._store.sweep(number, LEFTOVER_AGE_S)
        self._kept = dict(winners)
