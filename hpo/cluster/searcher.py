"""Tune's searcher, as a thin wire to the study: one Tune trial is one stored trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from hpo.cluster.spread import Spread
from hpo.errors import ExhaustedError
from hpo.study import Claim, Study


class StudySearcher(Searcher):
    """Hands Tune the study's next trial when there is room for it, and never one ahead."""

    def __init__(
        self,
        study: Study,
        num_slots: Callable[[], int],
        tune_config: Callable[[Claim, int], dict[str, Any]],
        is_ending: Callable[[], bool],
        spread: Spread,
    ) -> None:
        """Wire a study to Tune.

        Args:
            study: Where trials come from.
            num_slots: How many trials the cluster holds now.
            tune_config: What a place gets for a claim, and for the number of a host on a node without
                a GPU.
            is_ending: Whether no further trial shall begin; asked often, also while Tune waits.
            spread: Of the trials over hosts.
        """
        super().__init__()
        self._study = study
        self._num_slots = num_slots
        self._tune_config = tune_config
        self._is_ending = is_ending
        self._spread = spread
        self._has_none_for_a_place = False
        self.exhausted: str | None = None

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Accept anything: the study knows its metric."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's config, None to wait, or FINISHED."""
        if self._is_ending():
            return str(Searcher.FINISHED)
        if len(self._spread) >= self._num_slots():
            return None
        try:
            claim = self._study.next_trial()
        except ExhaustedError as error:
            self.exhausted = str(error)
            return str(Searcher.FINISHED)
        self._has_none_for_a_place = claim is None
        return None if claim is None else self._tune_config(claim, self._spread.take(trial_id))

    def moves(self, trial_id: str) -> bool:
        """Return whether a trial shall go on elsewhere, and free its place then.

        No other trial is left for a host that has fewer than its own.
        """
        if not (self._has_none_for_a_place and self._spread.is_crowded(trial_id)):
            return False
        self._spread.free(trial_id)
        return True

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Free the trial's place."""
        self._spread.free(trial_id)

    def __getstate__(self) -> dict[str, object]:
        """Pickle to nothing: Tune writes its searcher to the disk, and this one holds a database."""
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Come back as nothing: a study is resumed from its database."""

    def save(self, checkpoint_path: str) -> None:
        """Write nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""
