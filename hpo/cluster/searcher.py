"""Tune's searcher, as a thin wire to the study: one Tune trial is one stored trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

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
        cpu_hosts: int = 1,
    ) -> None:
        """Wire a study to Tune.

        Args:
            study: Where trials come from.
            num_slots: How many trials the cluster holds now.
            tune_config: What a proxy gets for a claim, and for the number of a host on a node without
                a GPU.
            is_ending: Whether no further trial shall begin; asked often, also while Tune waits.
            cpu_hosts: Of each node without a GPU.
        """
        super().__init__()
        self._study = study
        self._num_slots = num_slots
        self._tune_config = tune_config
        self._is_ending = is_ending
        self._cpu_hosts = cpu_hosts
        self._host_of: dict[str, int] = {}
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
        if len(self._host_of) >= self._num_slots():
            return None
        try:
            claim = self._study.next_trial()
        except ExhaustedError as error:
            self.exhausted = str(error)
            return str(Searcher.FINISHED)
        if claim is None:
            return None
        taken = list(self._host_of.values())
        host = min(range(self._cpu_hosts), key=taken.count)
        self._host_of[trial_id] = host
        return self._tune_config(claim, host)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Free the trial's place."""
        self._host_of.pop(trial_id, None)

    def __getstate__(self) -> dict[str, object]:
        """Pickle to nothing: Tune writes its searcher to the disk, and this one holds a database."""
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Come back as nothing: a study is resumed from its database."""

    def save(self, checkpoint_path: str) -> None:
        """Write nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""
