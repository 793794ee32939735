"""Who leads, and who is left: kept up to date trial by trial, so that no question costs a look at all."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter

from optuna.trial import FrozenTrial, TrialState


class Standing:
    """The states of a study's trials, and the completed ones in order."""

    def __init__(self, sign: float) -> None:
        """Know no trial yet.

        Args:
            sign: ``sign * value`` is to be minimized.
        """
        self._sign = sign
        self._states: dict[int, TrialState] = {}
        self._ranking: list[tuple[float, int]] = []
        self._unfinished: list[int] = []
        self.counts: Counter[TrialState] = Counter()

    def see(self, trial: FrozenTrial) -> None:
        """Take a trial's state as it is now; one that has ended does not change any more."""
        before = self._states.get(trial.number)
        if before == trial.state:
            return
        if before is not None:
            self.counts[before] -= 1
        self.counts[trial.state] += 1
        self._states[trial.number] = trial.state
        if not trial.state.is_finished():
            if before is None:
                insort(self._unfinished, trial.number)
            return
        if before is not None:
            del self._unfinished[bisect_left(self._unfinished, trial.number)]
        if trial.state is TrialState.COMPLETE and trial.values:
            insort(self._ranking, (self._sign * trial.values[0], trial.number))

    def leaders(self, num_trials: int) -> list[int]:
        """Return the numbers of the best completed trials, best first, the first of equals first."""
        return [number for _, number in self._ranking[:num_trials]]

    @property
    def unfinished(self) -> list[int]:
        """The numbers of the trials that have not ended, rising."""
        return list(self._unfinished)
