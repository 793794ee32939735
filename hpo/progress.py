"""Shows a run while it works: a live table on a terminal, plain lines elsewhere. On stderr."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpo.lookup import find_trainer, option_defaults
from hpo.studies import TrialRecord
from hpo.study import Claim, Study
from hpo.tables import MAX_ROWS, counted, in_words, shown, trials_table
from hpo.trackers import chosen
from hpo.trackers.outlet import FLUSH_S, Outlets
from hpo.trackers.tracker import Ending
from trainers.protocol import Report

REFRESH_S = 0.5


class RunProgress:
    """Tells the user what happens, and the trackers where to look."""

    def __init__(self, study: Study, console: Console) -> None:
        """Watch a study.

        Args:
            study: The one that runs.
            console: On stderr; a terminal gets the live table.
        """
        self._study = study
        self._console = console
        self._started = time.monotonic()
        self._drawn_at = 0.0
        self._notes: set[str] = set()
        spec = study.spec
        self._outlets = Outlets(
            chosen(spec.report_to),
            study.store.work_folder(),
            spec.study,
            spec.metric,
            spec.run_name,
            option_defaults(find_trainer(spec.trainer).Options),
        )
        self._tell_of_ended()  # an earlier driver may have been killed before it could
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()

    def began(self, claim: Claim) -> None:
        """Tell of a trial that begins or goes on."""
        space = self._study.spec.space
        params = ", ".join(f"{k}={shown(claim.config[k])}" for k in space if k in claim.config)
        verb = "goes on" if claim.adopted else "begins"
        self._line(f"trial {claim.number} {verb}: {params}")
        log_folder = self._study.store.trial_folder(claim.number)
        self._outlets.tell(claim.number, claim.config, log_folder)

    def reported(self, number: int, report: Report, over: bool) -> None:
        """Tell of a validation or an end."""
        trial = self._study.trial(number)
        self._tell(trial)
        for note in report.notes:
            if note not in self._notes:
                self._notes.add(note)
                self._line(f"note: {note}")
        metric = self._study.spec.metric
        value = report.metrics.get(metric)
        text = f"trial {number} step {report.step}"
        if value is not None:
            text += f": {metric} {value:.4f}"
        if over:
            text += f" -> {in_words(trial.reason or trial.state.lower())}"
        if over and trial.message:
            text += f" ({trial.message.strip().splitlines()[-1]})"
        self._line(text)

    def lost(self, number: int, cause: str, over: bool) -> None:
        """Tell of a trial whose process or node was lost."""
        most, count = self._study.spec.max_failures, self._study.num_losses(number)
        if over:
            self._tell(self._study.trial(number))
            after = f"lost {count} times, 'max_failures: {most}' allows {most} -> failed"
        else:
            after = f"goes on from its newest checkpoint (loss {count} of {most})"
        self._line(f"trial {number} lost: {cause}; {after}")

    def noted(self, message: str) -> None:
        """Tell something."""
        if self._live is not None:
            self._live.console.print(message, style="dim", markup=False)
        else:
            self._line(message)

    def tick(self) -> None:
        """Redraw the live table when it is time."""
        self._say(self._outlets.heard())
        now = time.monotonic()
        if self._live is None or now < self._drawn_at + REFRESH_S:
            return
        self._drawn_at = now
        self._live.update(self._picture(), refresh=True)

    def close(self, wait_s: float = FLUSH_S) -> None:
        """Give the terminal back; wait for the trackers, but not longer than ``wait_s``."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if wait_s:
            self._tell_of_ended()
        self._say(self._outlets.close(wait_s))
        self._study.store.flush()

    def _tell_of_ended(self) -> None:
        if self._study.spec.report_to:
            for trial in self._study.record.trials():
                if trial.reason is not None:
                    self._tell(trial)

    def _tell(self, trial: TrialRecord) -> None:
        ending = None
        if trial.reason is not None:
            ending = Ending(trial.state, trial.reason, trial.message, trial.value)
        folder = self._study.store.trial_folder(trial.number)
        self._outlets.tell(trial.number, trial.config, folder, ending)

    def _say(self, said: Sequence[str]) -> None:
        for text in said:
            self.noted(text)

    def _picture(self) -> Group:
        counts, spec = self._study.counts(), self._study.spec
        num_trials = sum(counts.values())
        best, shown_trials = self._study.best(), self._study.recent(MAX_ROWS)
        table: Table = trials_table(shown_trials, spec, best, num_trials)
        seconds = int(time.monotonic() - self._started)
        status = (
            f"{spec.study}: {num_trials} of {self._study.num_trials} trials, {counted(counts)}, "
            f"{seconds // 60}:{seconds % 60:02d} min. Ctrl-C saves and leaves."
        )
        return Group(table, Text(status, style="dim"))

    def _line(self, text: str) -> None:
        if self._live is None:
            seconds = int(time.monotonic() - self._started)
            stamp = f"[{seconds // 60:02d}:{seconds % 60:02d}]"
            self._console.print(f"{stamp} {text}", markup=False, highlight=False, soft_wrap=True)
