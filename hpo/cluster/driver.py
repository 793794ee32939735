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
from typing import TYPE_CHECKING, Any

from hpo.cluster.messages import HostSetup
from hpo.cluster.replaced import replaced
from hpo.cluster.session import host_handles, ray_session
from hpo.cluster.signals import Signals
from hpo.cluster.slots import Node, nodes_of, num_slots, request
from hpo.cluster.spread import Spread
from hpo.cluster.stays import Progress, Stays
from hpo.cluster.tune_start import load_tune
from hpo.errors import HpoError, LeaseLostError, StudyError, TrainerError
from hpo.spec import AUTO
from hpo.study import Claim, Study

if TYPE_CHECKING:
    from hpo.cluster.places import Places

IDLE_S = 0.25
"""So long Tune's loop waits for something to happen before it turns again; by itself, 0.1 s."""

NODES_POLL_S = 1.0
RAY_POLL_S = 2.0
STOP_POLL_S = 2.0
SILENCE_POLL_S = 0.5
PAUSE_AGAIN_S = 1.0
STOP_WAIT_S = 20.0
"""So long after a signal hosts may save their trials: machines end after 30 s, and Ray needs some."""

UNHURRIED_WAIT_S = 300.0
"""So long when nobody but us ends the run: `hpo stop`, the time budget, a study that failed."""


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
        self._failure: HpoError | None = None
        self._pause_at = 0.0
        self._leave_by = 0.0
        self._leaving = False
        self._poll_at = 0.0
        self._ray_at = 0.0
        self._silence_at = 0.0
        self._nodes_at = 0.0
        self._known_nodes: list[Node] = []
        self._places: Places | None = None
        self._stays = Stays(study, progress, self._leave, self._fail)
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
            session = ray_session(address, self._run_id, self._signals, self._progress.noted)
            with session as scratch:
                self._check_holds_a_trial()
                if self._study.spec.resources.gpu == AUTO and not self._is_ending():
                    self._gpu = self._measured_share()
                if not self._is_ending():
                    self._begin_to_load()
                    exhausted = self._tune(scratch).exhausted
                self._hand_back()
                if self._failure is not None:
                    raise self._failure
        if self._ending is not None:
            return Outcome(self._signals.count > 0, True, self._ending)
        return Outcome(False, False, exhausted or "done")

    def _nodes(self) -> list[Node]:
        """Return the nodes of the cluster as they were within the last second; they come and go."""
        import ray

        if time.monotonic() >= self._nodes_at:
            self._nodes_at = time.monotonic() + NODES_POLL_S
            self._known_nodes = nodes_of(ray.nodes())
        return self._known_nodes

    def _num_slots(self) -> int:
        slots, limit = num_slots(self._nodes(), self._gpu), self._study.spec.max_concurrent
        return slots if limit is None else min(slots, limit)

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

    def _begin_to_load(self) -> None:
        """Let the model load while Tune is loaded, where it is known who will ask for it.

        On this machine without a GPU all hosts are used. With GPUs Ray chooses which one is used first.
        """
        import ray

        nodes = self._nodes()
        if self._study.spec.ray_address is None and len(nodes) == 1 and not nodes[0].gpus:
            from hpo.cluster.placing import cpu, host_on

            node_id = ray.get_runtime_context().get_node_id()
            for number in range(min(self._study.spec.resources.cpu_hosts, self._num_slots())):
                host_on(node_id, cpu(number), self._run_id, self._setup())

    def _setup(self) -> HostSetup:
        spec = self._study.spec
        return HostSetup(
            trainer=spec.trainer,
            fixed=spec.fixed,
            store=str(self._study.store.root),
            disk_quota_gib=spec.disk_quota_gib,
            patience_s=max(spec.lease_s, 15.0),
            import_path=(os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)),
            stall_timeout=spec.stall_timeout,
            cpu_hosts=spec.resources.cpu_hosts,
        )

    # Tune

    def _tune(self, scratch: Path) -> Any:
        load_tune()
        import ray.tune.tune
        from ray import tune
        from ray.air._internal import usage
        from ray.tune.execution import tune_controller

        from hpo.cluster.heart import Heart
        from hpo.cluster.places import Places
        from hpo.cluster.scheduler import StudyScheduler
        from hpo.cluster.searcher import StudySearcher

        spec = self._study.spec
        nodes = self._nodes()
        places = self._places = Places(IDLE_S)
        searcher = StudySearcher(
            self._study,
            self._num_slots,
            self._tune_config,
            self._is_ending,
            Spread(spec.resources.cpu_hosts),
        )
        scheduler = StudyScheduler(self._study, self._stays, searcher.moves)
        try:
            with (
                # Ray counts the trackers, and imports each to know it: a second, 80 MiB.
                replaced(usage, "tag_callbacks", lambda callbacks: False),
                replaced(tune_controller, "RayActorManager", lambda resource_manager: places),
                # Tune writes its state all the time, and reads it at the end: nobody asks for it.
                replaced(tune_controller.TuneController, "checkpoint", lambda self, **how: None),
                replaced(ray.tune.tune, "ExperimentAnalysis", lambda **what: None),
            ):
                tune.run(
                    tune.Trainable,  # see places
                    resources_per_trial=request(nodes, self._gpu),
                    search_alg=searcher,
                    scheduler=scheduler,
                    num_samples=-1,
                    reuse_actors=True,
                    trial_name_creator=_name_of,
                    trial_dirname_creator=_name_of,
                    name=spec.study,
                    storage_path=str(scratch),
                    verbose=0,
                    callbacks=[Heart(self._on_turn)],
                    # What is lost is counted in the database, and comes back as a Tune trial of its own.
                    max_failures=0,
                )
        except Exception:
            if scheduler.error is not None:  # Tune wraps it in a text of its own
                raise scheduler.error from None
            if not self._leaving:
                raise
        return searcher

    def _tune_config(self, claim: Claim, cpu_host: int) -> dict[str, Any]:
        self._progress.began(claim)
        return {
            "number": claim.number,
            "config": claim.config,
            "setup": self._setup(),
            "run_id": self._run_id,
            "cpu_host": cpu_host,
            **self._stays.begin(claim.number),
        }

    def _leave(self, number: int, stay: int) -> None:
        if self._places is not None:
            self._places.leave(number, stay)

    # Ending

    def _fail(self, error: TrainerError) -> None:
        self._failure = self._failure or error
        self._ending = self._ending or "no trial can be trained"

    def _is_ending(self) -> bool:
        self._beat()
        return self._ending is not None

    def _beat(self) -> None:
        """Called by Tune's loop and by the searcher, several times a second."""
        for number in self._study.tick():  # another driver has them
            self._stays.end(number)
        self._progress.tick()
        now = time.monotonic()
        if self._signals.first is not None:
            self._ending = self._ending or f"caught {self._signals.first}"
        if self._ends_at is not None and now >= self._ends_at:
            self._ending = self._ending or "the time budget is used up"
        if now >= self._poll_at and self._ending is None:
            self._poll_at = now + STOP_POLL_S
            if self._study.stop_requested():
                self._ending = "`hpo stop` asked for it"
        if self._ending is not None and now >= self._pause_at:
            self._ask_to_save(now)

    def _ask_to_save(self, now: float) -> None:
        if self._pause_at == 0.0:
            self._leave_by = now + UNHURRIED_WAIT_S
            if self._study.claimed:
                self._progress.noted(f"stopping ({self._ending}): saving every running trial")
        if self._signals.first is not None:
            self._leave_by = min(self._leave_by, self._signals.since + STOP_WAIT_S)
        self._pause_at = now + PAUSE_AGAIN_S  # a host may only just be made
        for host in host_handles(self._run_id):
            host.pause.remote()

    def _on_turn(self, trials: Sequence[Any]) -> None:
        """Act at a turn of Tune's loop."""
        self._beat()
        now = time.monotonic()
        if now >= self._silence_at and self._places is not None:
            self._silence_at = now + SILENCE_POLL_S
            self._places.kill_silent()
        self._check_ray_lives()
        if self._ending is None:
            return
        is_saved = all(trial.status != "RUNNING" for trial in trials)
        if is_saved or time.monotonic() >= self._leave_by:
            self._leaving = True  # trials that wait for a place would wait for ever
            self._hand_back()
            raise _LeavingError

    def _check_ray_lives(self) -> None:
        """Leave when our own Ray has died: Tune would wait for it for ever."""
        now = time.monotonic()
        if self._study.spec.ray_address is not None or now < self._ray_at:
            return
        self._ray_at = now + RAY_POLL_S
        if not self._nodes():
            name = self._study.spec.study
            self._failure = StudyError(
                f"Ray's processes on this machine have died. Every report and "
                f"checkpoint is stored: type `hpo resume {name}`."
            )
            self._leaving = True
            raise _LeavingError

    def _hand_back(self) -> None:
        """Set what is unfinished free, before the cluster's end takes its time."""
        left = sorted(self._study.claimed)
        if left and time.monotonic() >= self._leave_by > 0:
            listed = ", ".join(map(str, left))
            wait_s = STOP_WAIT_S if self._signals.first else UNHURRIED_WAIT_S
            self._progress.noted(
                f"trials {listed} had not saved within {wait_s:g} s (a step takes longer, or the "
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
