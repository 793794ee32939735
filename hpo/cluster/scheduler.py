"""Tune's scheduler, as a thin wire to the study: report, and pass on the verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from hpo.cluster.host import Word
from hpo.cluster.proxy import WORD
from hpo.errors import LeaseLostError
from hpo.study import Study
from trainers.protocol import Report


class StudyScheduler(FIFOScheduler):
    """Files every report before anything else happens with it."""

    def __init__(
        self,
        study: Study,
        on_report: Callable[[int, Report, bool], None],
        on_fatal: Callable[[str], None],
    ) -> None:
        """Wire a study to Tune.

        Args:
            study: Where reports go and verdicts come from.
            on_report: Told of each report when it is stored, and whether the trial is over.
            on_fatal: Told why no trial can be trained at all.
        """
        super().__init__()
        self._study = study
        self._on_report = on_report
        self._on_fatal = on_fatal

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass a host's word to the study; return STOP or CONTINUE."""
        number = int(result["number"])
        word: Word = result[WORD]
        if number not in self._study.claimed:  # lost to another driver
            return str(TrialScheduler.STOP)
        try:
            if word.fatal is not None:
                self._study.release(number)
                self._on_fatal(word.fatal)
                return str(TrialScheduler.STOP)
            if word.paused or word.report is None:
                self._study.release(number)
                return str(TrialScheduler.STOP)
            stop = self._study.report(number, word.report)
        except LeaseLostError:
            self._study.drop(number)
            return str(TrialScheduler.STOP)
        self._on_report(number, word.report, stop)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        """Tell that a trial's place was lost again and again."""
        number = int(trial.config["number"])
        if number in self._study.claimed:
            reason = f"its process or node was lost too often: {trial.get_error()}"
            self._study.fail(number, reason)

    def __getstate__(self) -> dict[str, object]:
        """Pickle to nothing, as the searcher."""
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Come back as nothing."""
