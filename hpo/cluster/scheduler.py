"""Tune's scheduler, as a thin wire to the study: report, and pass on the verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from hpo.cluster.messages import Word
from hpo.cluster.proxy import WORD
from hpo.errors import LeaseLostError
from hpo.study import Study
from trainers.protocol import Report


class StudyScheduler(FIFOScheduler):
    """Files every report before anything else happens with it.

    Attributes:
        error: What the study raised; Tune hands on only its text.
    """

    def __init__(
        self,
        study: Study,
        on_report: Callable[[int, Report, bool], None],
        on_stop: Callable[[int], None],
        on_fatal: Callable[[str], None],
        on_note: Callable[[str], None],
    ) -> None:
        """Wire a study to Tune.

        Args:
            study: Where reports go and verdicts come from.
            on_report: Told of each report when it is stored, and whether the trial is over.
            on_stop: Told of each trial that this driver trains no further.
            on_fatal: Told why no trial can be trained at all.
            on_note: Told what the user should know, in one line.
        """
        super().__init__()
        self._study = study
        self._on_report = on_report
        self._on_stop = on_stop
        self._on_fatal = on_fatal
        self._on_note = on_note
        self.error: Exception | None = None

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass a host's word to the study; return STOP or CONTINUE."""
        number = int(result["number"])
        try:
            stop = self._hear(number, result[WORD])
        except LeaseLostError:
            self._study.drop(number)
            stop = True
        except Exception as error:
            self.error = error
            raise
        if not stop:
            return str(TrialScheduler.CONTINUE)
        if not result[WORD].paused:  # its host has let it go, and it may be on the way back there
            self._on_stop(number)
        return str(TrialScheduler.STOP)

    def _hear(self, number: int, word: Word) -> bool:
        """Act on a host's word; return whether the trial is over here."""
        if number not in self._study.claimed:  # lost to another driver
            return True
        if word.fatal is not None:
            self._study.release(number)
            self._on_fatal(word.fatal)
            return True
        if word.note is not None:
            self._on_note(f"warning: {word.note}")
            return False
        if word.paused or word.report is None:
            self._study.release(number)
            if word.reason is not None:
                self._on_note(f"trial {number} makes room and goes on later: {word.reason}")
            return True
        is_news = not self._study.knows(number, word.report)
        stop = self._study.report(number, word.report)
        if is_news or stop:
            self._on_report(number, word.report, stop)
        return stop

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        """Tell that a trial's place was lost again and again."""
        number = int(trial.config["number"])
        if number not in self._study.claimed or trial.should_recover():
            return  # Tune tells of one that it tries again, too
        try:
            reason = f"its process or node was lost too often: {trial.get_error()}"
            self._study.fail(number, reason)
        except LeaseLostError:
            self._study.drop(number)
        except Exception as error:
            self.error = error
            raise

    def __getstate__(self) -> dict[str, object]:
        """Pickle to nothing, as the searcher."""
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Come back as nothing."""
