"""Where each trial of a run is trained, what is heard of it there, and what its losses mean.

A stay is one trial on one host, from its joining to its end there; a trial that comes back has
another. What was heard is filed by ``scheduler``; the driver's other duties are in ``driver``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hpo.cluster.messages import Loss
from hpo.errors import TrainerError
from hpo.study import Claim, Study
from trainers.protocol import Report


class Progress(Protocol):
    """Who watches a run: told of what happens, on the driver's own thread."""

    def began(self, claim: Claim) -> None:
        """A trial was proposed or adopted."""

    def reported(self, number: int, report: Report, over: bool) -> None:
        """A report is stored; ``over`` if it was the trial's last."""

    def lost(self, number: int, cause: str, over: bool) -> None:
        """A trial's process or node was lost; ``over`` if that was once too often.

        Args:
            number: Of the trial.
            cause: In a few words.
            over: It is told as failed.
        """

    def noted(self, message: str) -> None:
        """Something to say in one line."""

    def tick(self) -> None:
        """Called several times a second."""


class Stays:
    """The stays of one run's trials; the scheduler's listener."""

    def __init__(
        self,
        study: Study,
        progress: Progress,
        leave: Callable[[int, int], None],
        fail: Callable[[TrainerError], None],
    ) -> None:
        """Begin without any.

        Args:
            study: This driver's hold on it.
            progress: Told of everything.
            leave: Called with a trial and its stay, where it shall leave its host.
            fail: Called with why the run has to end.
        """
        self._study = study
        self._progress = progress
        self._leave = leave
        self._fail = fail
        self._newest = 0
        self._stays: dict[int, int] = {}
        self._loaded: set[str] = set()
        self._never_loaded: set[str] = set()
        self._lost_in_a_row = 0

    def begin(self, number: int) -> dict[str, object]:
        """Begin a trial's next stay; return what its host has to know of it."""
        self._newest += 1
        self._stays[number] = self._newest
        most = self._study.spec.max_failures
        # Its next loss would be its last: no neighbour shall be the cause, nor be lost with it.
        return {"stay": self._newest, "alone": 0 < most <= self._study.num_losses(number)}

    def end(self, number: int) -> None:
        """Let its host drop a trial that is another driver's now."""
        self.on_stop(number, self._stays.get(number, 0))

    # What the scheduler hears

    def stay_of(self, number: int) -> int | None:
        """Return the stay that a trial has here now; None if it has none."""
        return self._stays.get(number)

    def on_report(self, number: int, report: Report, over: bool) -> None:
        """Tell of a report; stop a study whose trials all fail alike."""
        self._never_loaded.clear()
        self._progress.reported(number, report, over)
        if over:
            self._lost_in_a_row = 0
            error = self._study.repeated_error()
            if error is not None:
                self._fail_all_alike(number, f"failed with the same error:\n{error.strip()}")

    def on_stop(self, number: int, stay: int) -> None:
        """Let its host drop a trial that is over."""
        self._leave(number, stay)

    def on_fatal(self, reason: str) -> None:
        """End the run: no trial can be trained."""
        self._fail(TrainerError(reason))

    def on_note(self, message: str) -> None:
        """Tell something."""
        self._progress.noted(message)

    def on_loss(self, number: int, loss: Loss, goes_on: bool) -> None:
        """Tell of a loss; stop a study whose model never loads, or whose trials are all lost."""
        if loss.has_loaded:
            self._loaded.add(loss.host)
        elif loss.host not in self._loaded:
            self._never_loaded.add(loss.host)
            if len(self._never_loaded) > max(1, self._study.spec.max_failures):
                name = self._study.spec.study
                self.on_fatal(
                    f"no trial can be trained: {len(self._never_loaded)} host processes in a row ended "
                    f"while they loaded the model. The last one: {loss.cause}.\n{loss.output}".strip()
                    + f"\nMend that, then type: hpo resume {name}"
                )
        if not loss.is_counted:
            return
        self._progress.lost(number, loss.cause, not goes_on)
        if not goes_on:
            self._lost_in_a_row += 1
            if self._lost_in_a_row >= self._study.spec.max_identical_errors:
                self._fail_all_alike(number, f"were lost with their processes: {loss.cause}")

    def _fail_all_alike(self, number: int, how: str) -> None:
        spec = self._study.spec
        error = TrainerError(
            f"stopped, because the last {spec.max_identical_errors} trials {how}\n"
            f"What they wrote: hpo logs {spec.study} {number}. Mend it, then type: hpo resume "
            f"{spec.study} (the trials that had not ended go on; 'max_identical_errors: "
            f"{spec.max_identical_errors}' says after how many to stop)."
        )
        error.exit_code = 1  # the study had begun; what it has stands
        self._fail(error)
