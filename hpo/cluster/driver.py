"""Runs a study on Ray until it is done, its time is up, or somebody asks it to stop.

Wires the study to Tune, hears what becomes of its trials, and turns signals into a graceful leave:
every trial is saved and handed back. The cluster is in ``session``, the study's rules in ``hpo.study``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hpo.cluster.messages import HostSetup, Loss, Word
from hpo.cluster.session import host_handles, ray_session
from hpo.cluster.signals import Signals
from hpo.cluster.silence import Silence
from hpo.cluster.slots import Node, nodes_of, num_slots, request
from hpo.errors import LeaseLostError, StudyError, TrainerError
from hpo.spec import AUTO
from hpo.study import Claim, Study
from trainers.protocol import Report

STOP_POLL_S = 2.0
PAUSE_AGAIN_S = 1.0
STOP_WAIT_S = 20.0
"""Hosts have so long to save their trials. Whoever ends machines gives 30 s, and Ray needs some."""


class Progress(Protocol):
    """Who watches a run: told of what happens, on the driver's own thread."""

    def began(self, claim: Claim) -> None:
        """A trial was proposed or adopted."""

    def reported(self, number: int, report: Report, over: bool) -> None:
        """A report is stored; ``over`` if it was the trial's last."""

    def lost(self, number: int, cause: str, output: str, over: bool) -> None:
        """A trial's process or node was lost; ``over`` if that was once too often.

        Args:
            number: Of the trial.
            cause: In a few words.
            output: The end of what its host's process wrote.
            over: It is told as failed.
        """

    def noted(self, message: str) -> None:
        """Something to say in one line."""

    def tick(self) -> None:
        """Called several times a second."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        by_signal: Ctrl-C or SIGTERM ended it before it was done.
        early: That, `hpo stop` or the time budget did.
        reason: In one line.
    """

    by_signal: bool
    early: bool
    reason: str


class _LeavingError(Exception):
    """Ends Tune's loop when every running trial is saved; never seen by a user."""


class Driver:
    """One run of a study."""

    def __init__(self, study: Study, progress: Progress, signals: Signals | None = None) -> None:
        """Wire a run.

        Args:
            study: This driver's hold on it.
            progress: Told of everything.
            signals: Caught by the caller already; else caught while it runs.
        """
        self._study = study
        self._progress = progress
        self._given_signals = signals
        self._signals = signals or Signals()
        self._run_id = uuid.uuid4().hex[:8]
        self._ending: str | None = None
        self._failure: TrainerError | None = None
        self._pause_at = 0.0
        self._leave_by = 0.0
        self._leaving = False
        self._poll_at = 0.0
        self._slots_at = 0.0
        self._slots = 0
        self._stay = 0
        self._stays: dict[int, int] = {}
        self._waiting: set[int] = set()
        self._killed: dict[str, str] = {}
        self._silence = Silence(study.spec.stall_timeout)
        self._loaded: set[str] = set()
        self._never_loaded: set[str] = set()
        self._lost_in_a_row = 0
        gpu = study.spec.resources.gpu
        self._gpu = 1.0 if isinstance(gpu, str) else gpu
        hours = study.spec.budget.hours
        self._ends_at = None if hours is None else time.monotonic() + hours * 3600

    def run(self) -> Outcome:
        """Train until the study is done, or told to stop.

        Raises:
            TrainerError: No trial can be trained at all, or all fail alike, and why.
            HpoError: The database or the disk failed; everything stored stands.
        """
        with contextlib.ExitStack() as stack:
            # Ray prints what it has to say of its nodes on stdout, which is for data.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            if self._given_signals is None:
                stack.enter_context(self._signals)
            address = self._study.spec.ray_address
            exhausted = None
            with ray_session(address, self._run_id, self._signals, self._progress.noted) as scratch:
                self._check_holds_a_trial()
                if self._study.spec.resources.gpu == AUTO and not self._is_ending():
                    self._gpu = self._measured_share()
                if not self._is_ending():
                    exhausted = self._tune(scratch).exhausted
                self._hand_back()
                if self._failure is not None:
                    raise self._failure
        if self._ending is not None:
            return Outcome(self._signals.count > 0, True, self._ending)
        return Outcome(False, False, exhausted or "done")

    def _nodes(self) -> list[Node]:
        import ray

        return nodes_of(ray.nodes())

    def _num_slots(self) -> int:
        """Return the places of the cluster as it is now; nodes come and go."""
        if time.monotonic() >= self._slots_at:
            self._slots_at = time.monotonic() + 1.0
            self._slots = num_slots(self._nodes(), self._gpu)
        limit = self._study.spec.max_concurrent
        return self._slots if limit is None else min(self._slots, limit)

    def _check_holds_a_trial(self) -> None:
        nodes = self._nodes()
        if num_slots(nodes, self._gpu) == 0 and self._study.spec.ray_address is None:
            raise StudyError(
                f"a trial needs {self._gpu:g} GPUs and this machine has "
                f"{sum(node.gpus for node in nodes):g}. Set 'resources: {{gpu: ...}}' to less, or "
                f"'ray_address:' to a cluster that has more."
            )

    def _measured_share(self) -> float:
        from hpo.cluster.measure import find_share

        spec, say = self._study.spec, self._progress.noted
        return find_share(spec, self._setup(), self._nodes(), say, self._is_ending)

    def _setup(self) -> HostSetup:
        spec = self._study.spec
        return HostSetup(
            trainer=spec.trainer,
            fixed=spec.fixed,
            store=str(self._study.store.root),
            patience_s=max(spec.lease_s, 15.0),
            import_path=(os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)),
            stall_timeout=spec.stall_timeout,
        )

    # Tune

    def _tune(self, scratch: Path) -> Any:
        from ray import tune

        from hpo.cluster.heart import Heart
        from hpo.cluster.proxy import TrialProxy
        from hpo.cluster.scheduler import StudyScheduler
        from hpo.cluster.searcher import StudySearcher

        spec = self._study.spec
        nodes = self._nodes()
        searcher = StudySearcher(self._study, self._num_slots, self._tune_config, self._is_ending)
        scheduler = StudyScheduler(self._study, self)
        try:
            tune.Tuner(
                tune.with_resources(TrialProxy, request(nodes, self._gpu)),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler,
                    num_samples=-1,
                    reuse_actors=True,
                    trial_name_creator=_name_of,
                    trial_dirname_creator=_name_of,
                ),
                run_config=tune.RunConfig(
                    name=spec.study,
                    storage_path=str(scratch),
                    verbose=0,
                    callbacks=[Heart(self._on_turn)],
                    # What is lost is counted in the database, and comes back as a Tune trial of its own.
                    failure_config=tune.FailureConfig(max_failures=0),
                ),
            ).fit()
        except Exception:
            if scheduler.error is not None:  # Tune wraps it in a text of its own
                raise scheduler.error from None
            if not self._leaving:
                raise
        return searcher

    def _tune_config(self, claim: Claim) -> dict[str, Any]:
        self._progress.began(claim)
        self._stay += 1
        self._stays[claim.number] = self._stay
        self._waiting.discard(claim.number)
        most = self._study.spec.max_failures
        return {
            "number": claim.number,
            "config": claim.config,
            "setup": self._setup(),
            "run_id": self._run_id,
            "stay": self._stay,
            # Its next loss would be its last: no neighbour shall be the cause, nor be lost with it.
            "alone": 0 < most <= self._study.num_losses(claim.number),
        }

    # What the scheduler hears

    def stay_of(self, number: int) -> int | None:
        """Return the stay that a trial has here now; None if it has none."""
        return self._stays.get(number)

    def on_word(self, trial: Any, word: Word) -> None:
        """Note that a trial's proxy is alive."""
        self._silence.heard(trial)
        number = int(trial.config["number"])
        if word.waiting:
            self._waiting.add(number)
        else:
            self._waiting.discard(number)

    def is_waiting(self, number: int) -> bool:
        """Return whether a trial was not trained yet when last heard of."""
        return number in self._waiting

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
        """Let the hosts drop a trial that is over: its proxy may idle until the next trial comes."""
        for host in host_handles(self._run_id):
            host.leave.remote(number, stay)

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
        self._progress.lost(number, loss.cause, loss.output, not goes_on)
        if not goes_on:
            self._lost_in_a_row += 1
            if self._lost_in_a_row >= self._study.spec.max_identical_errors:
                self._fail_all_alike(number, f"were lost with their processes: {loss.cause}")

    def why_killed(self, trial: Any) -> str | None:
        """Return why this driver has killed a Tune trial's proxy, if it has."""
        return self._killed.pop(trial.trial_id, None)

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

    def _fail(self, error: TrainerError) -> None:
        self._failure = self._failure or error
        self._ending = self._ending or "no trial can be trained"

    # Ending

    def _is_ending(self) -> bool:
        self._beat()
        return self._ending is not None

    def _beat(self) -> None:
        """Called by Tune's loop and by the searcher, several times a second."""
        for number in self._study.tick():  # another driver has them
            self.on_stop(number, self._stays.get(number, 0))
        self._progress.tick()
        now = time.monotonic()
        if self._signals.first is not None:
            self._ending = self._ending or f"caught {self._signals.first}"
        if self._ends_at is not None and now >= self._ends_at:
            self._ending = self._ending or "the time budget is used up"
        if now >= self._poll_at and self._ending is None:
            self._poll_at = now + STOP_POLL_S
            if self._study.record.stop_requested():
                self._ending = "`hpo stop` asked for it"
        if self._ending is not None and now >= self._pause_at:
            self._ask_to_save(now)

    def _ask_to_save(self, now: float) -> None:
        if self._pause_at == 0.0:
            since = self._signals.since if self._signals.first else now
            self._leave_by = since + STOP_WAIT_S
            if self._study.claimed:
                self._progress.noted(f"stopping ({self._ending}): saving every running trial")
        self._pause_at = now + PAUSE_AGAIN_S  # a host may only just be made
        for host in host_handles(self._run_id):
            host.pause.remote()

    def _on_turn(self, trials: Sequence[Any]) -> None:
        """Act at a turn of Tune's loop."""
        self._beat()
        for trial in self._silence.too_long(trials):
            self._kill_proxy(trial)
        if self._ending is None:
            return
        is_saved = all(trial.status != "RUNNING" for trial in trials)
        if is_saved or time.monotonic() >= self._leave_by:
            self._leaving = True  # trials that wait for a place would wait for ever
            raise _LeavingError

    def _kill_proxy(self, trial: Any) -> None:
        import ray

        if trial.trial_id not in self._killed:
            limit = self._silence.limit_s
            self._killed[trial.trial_id] = (
                f"stalled: its proxy process did not answer for {limit:g} s"
            )
            ray.kill(trial.temporary_state.ray_actor)

    def _hand_back(self) -> None:
        """Set what is unfinished free, before the cluster's end takes its time."""
        left = sorted(self._study.claimed)
        if left and time.monotonic() >= self._leave_by > 0:
            listed = ", ".join(map(str, left))
            self._progress.noted(
                f"trials {listed} had not saved within {STOP_WAIT_S:g} s (a step takes longer, or the "
                f"model is loading); they go on from their newest checkpoints"
            )
        for number in left:
            try:
                self._study.release(number)
            except LeaseLostError:
                self._study.drop(number)


def _name_of(trial: Any) -> str:
    """Return a Tune trial's name: what a Tune of one study has of a trial is told apart by its stay."""
    return f"trial_{trial.config['number']}_{trial.config['stay']}"
