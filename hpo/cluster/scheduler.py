"""Tune's scheduler, as a thin wire to the study: report, and pass on the verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from hpo.cluster.messages import Loss, Word
from hpo.cluster.places import WORDS
from hpo.errors import LeaseLostError
from hpo.study import Study
from trainers.protocol import Report


class Listener(Protocol):
    """Who hears what becomes of the trials of one run."""

    def stay_of(self, number: int) -> int | None:
        """Return the stay that a trial has here now; None if it has none."""

    def on_report(self, number: int, report: Report, over: bool) -> None:
        """A report is stored."""

    def on_stop(self, number: int, stay: int) -> None:
        """This driver trains a trial no further, or not there."""

    def on_fatal(self, reason: str) -> None:
        """No trial can be trained at all."""

    def on_note(self, message: str) -> None:
        """The user should know, in one line."""

    def on_loss(self, number: int, loss: Loss, goes_on: bool) -> None:
        """A trial's process or node was lost, which the study knows."""


class StudyScheduler(FIFOScheduler):
    """Files every report before anything else happens with it.

    Attributes:
        error: What the study raised; Tune hands on only its text.
    """

    def __init__(self, study: Study, listener: Listener, moves: Callable[[str], bool]) -> None:
        """Wire a study to Tune.

        Args:
            study: Where reports go and verdicts come from.
            listener: Told of everything.
            moves: Whether a Tune trial that may go on shall do so on another host.
        """
        super().__init__()
        self._moves = moves
        self._study = study
        self._listener = listener
        self.error: Exception | None = None

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass a host's words to the study; return STOP or CONTINUE."""
        number, stay = int(result["number"]), int(result["stay"])
        for word in result[WORDS]:
            if self._is_over(trial, number, stay, word):
                if not (word.paused or word.gone):  # its host has let it go
                    self._listener.on_stop(number, stay)
                return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)

    def _is_over(self, trial: Any, number: int, stay: int, word: Word) -> bool:
        """Hear one word; return whether the trial is over here."""
        try:
            return self._is_foreign(number, stay) or (
                word.is_news and self._hear(trial, number, word)
            )
        except LeaseLostError:
            self._drop(number)
            return True
        except Exception as error:
            self.error = error
            raise

    def _is_foreign(self, number: int, stay: int) -> bool:
        """Return whether a trial is another driver's now, or is trained elsewhere by this one."""
        return number not in self._study.claimed or self._listener.stay_of(number) != stay

    def _hear(self, trial: Any, number: int, word: Word) -> bool:
        """Act on a host's word; return whether the trial is over here."""
        if word.fatal is not None:
            self._study.release(number)
            self._listener.on_fatal(word.fatal)
            return True
        if word.note is not None:
            self._listener.on_note(f"warning: {word.note}")
            return False
        if word.loss is not None:
            self._lose(number, word.loss)
            return True
        if word.report is None:
            self._study.release(number)
            if word.reason is not None:
                self._listener.on_note(
                    f"trial {number} makes room and goes on later: {word.reason}"
                )
            return True
        is_news = not self._study.knows(number, word.report)
        stop = self._study.report(number, word.report)
        if is_news or stop:
            self._listener.on_report(number, word.report, stop)
        if is_news and not stop and self._moves(trial.trial_id):  # its checkpoint is just written
            self._study.release(number)
            self._listener.on_note(f"trial {number} moves to a host that has fewer")
            return True
        return stop

    def _lose(self, number: int, loss: Loss) -> None:
        """Count a loss, and hand the trial back unless that was one too many."""
        goes_on = not loss.is_counted or self._study.lose(number, loss.cause, loss.output)
        if goes_on:
            self._study.release(number)
        self._listener.on_loss(number, loss, goes_on)

    def _drop(self, number: int) -> None:
        if number in self._study.claimed:
            self._study.drop(number)

    def __getstate__(self) -> dict[str, object]:
        """Pickle to nothing, as the searcher."""
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Come back as nothing."""
