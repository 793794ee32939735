"""Runs a study on Ray until it is done, its time is up, or somebody asks it to stop.

Starts or joins the cluster, wires the study to Tune, and turns signals into a graceful leave: every
trial is saved and handed back. The study's rules are in ``hpo.study``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from hpo.cluster.loopback import on_loopback
from hpo.cluster.messages import HostSetup
from hpo.cluster.slots import Node, nodes_of, num_slots, request
from hpo.errors import StudyError, TrainerError
from hpo.spec import AUTO
from hpo.study import Claim, Study
from trainers.protocol import Report

log = logging.getLogger(__name__)

NAMESPACE = "hpo"
STOP_POLL_S = 2.0
PAUSE_AGAIN_S = 1.0
RETRIES = 3
CONNECT_TIMEOUT_S = 5

_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours saves the trials first
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}


class Progress(Protocol):
    """Who watches a run: told of what happens, on the driver's own thread."""

    def began(self, claim: Claim) -> None:
        """A trial was proposed or adopted."""

    def reported(self, number: int, report: Report, over: bool) -> None:
        """A report is stored; ``over`` if it was the trial's last."""

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

    def __init__(self, study: Study, progress: Progress) -> None:
        self._study = study
        self._progress = progress
        self._run_id = uuid.uuid4().hex[:8]
        self._ending: str | None = None
        self._fatal: str | None = None
        self._pause_at = 0.0
        self._leaving = False
        self._signals = 0
        self._poll_at = 0.0
        self._slots_at = 0.0
        self._slots = 0
        gpu = study.spec.resources.gpu
        self._gpu = 1.0 if isinstance(gpu, str) else gpu
        hours = study.spec.budget.hours
        self._ends_at = None if hours is None else time.monotonic() + hours * 3600

    def run(self) -> Outcome:
        """Train until the study is done, or told to stop.

        Raises:
            TrainerError: No trial can be trained at all, and why.
            HpoError: The database or the disk failed; everything stored stands.
        """
        # Ray prints what it has to say of its nodes on stdout, which is for data.
        # Ray takes SIGTERM for itself when it starts, so ours are set behind it.
        exhausted = None
        with contextlib.redirect_stdout(sys.stderr), self._cluster(), self._signals_caught():
            self._check_holds_a_trial()
            if self._study.spec.resources.gpu == AUTO:
                self._gpu = self._measured_share()
            if self._ending is None:
                exhausted = self._tune().exhausted
        if self._fatal is not None:
            raise TrainerError(self._fatal)
        if self._ending is not None:
            return Outcome(self._signals > 0, True, self._ending)
        return Outcome(False, False, exhausted or "done")

    # The cluster

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[None]:
        import ray

        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        address = self._study.spec.ray_address
        started = not ray.is_initialized()
        if started:
            _check_reachable(address)
            self._progress.noted(
                f"joining the Ray cluster {address}" if address else "starting Ray on this machine"
            )
            try:
                with on_loopback(address is None):
                    context = ray.init(
                        address=address or "local",
                        namespace=NAMESPACE,
                        include_dashboard=False if address is None else None,
                        logging_level=logging.ERROR,
                        log_to_driver=False,
                    )
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                raise StudyError(
                    f"cannot {'join the Ray cluster ' + address if address else 'start Ray'}: {error}"
                ) from None
        try:
            yield
        finally:
            self._end_hosts()
            if started:
                ray.shutdown()
            if started and address is None and self._fatal is None:
                # Ray keeps the logs of every session for ever; those of a run that failed stay.
                shutil.rmtree(context.address_info["session_dir"], ignore_errors=True)

    def _hosts(self) -> list[Any]:
        import ray
        from ray.util import list_named_actors

        handles = []
        for actor in list_named_actors(all_namespaces=True):
            if actor["name"].startswith(f"hpo-host-{self._run_id}-"):
                with contextlib.suppress(ValueError):
                    handles.append(ray.get_actor(actor["name"], namespace=actor["namespace"]))
        return handles

    def _end_hosts(self) -> None:
        import ray

        with contextlib.suppress(Exception):  # a cluster that is gone has no hosts
            for host in self._hosts():
                ray.kill(host)

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
            disk_quota_gib=spec.disk_quota_gib,
            patience_s=max(spec.lease_s, 15.0),
            import_path=(os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)),
        )

    # Tune

    def _tune(self) -> Any:
        from ray import tune

        from hpo.cluster.heart import Heart
        from hpo.cluster.proxy import TrialProxy
        from hpo.cluster.scheduler import StudyScheduler
        from hpo.cluster.searcher import StudySearcher

        spec = self._study.spec
        nodes = self._nodes()
        searcher = StudySearcher(self._study, self._num_slots, self._tune_config, self._is_ending)
        scheduler = StudyScheduler(
            self._study,
            self._progress.reported,
            self._dismiss,
            self._on_fatal,
            self._progress.noted,
        )
        scratch = tempfile.mkdtemp(prefix="hpo-tune-")
        try:
            tune.Tuner(
                tune.with_resources(TrialProxy, request(nodes, self._gpu)),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler,
                    num_samples=-1,
                    reuse_actors=True,
                    trial_name_creator=lambda trial: f"trial_{trial.config['number']}",
                    trial_dirname_creator=lambda trial: f"trial_{trial.config['number']}",
                ),
                run_config=tune.RunConfig(
                    name=spec.study,
                    storage_path=scratch,
                    verbose=0,
                    callbacks=[Heart(self._on_turn)],
                    failure_config=tune.FailureConfig(max_failures=RETRIES),
                ),
            ).fit()
        except Exception:
            if scheduler.error is not None:  # Tune wraps it in a text of its own
                raise scheduler.error from None
            if not self._leaving:
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return searcher

    def _tune_config(self, claim: Claim) -> dict[str, Any]:
        self._progress.began(claim)
        return {
            "number": claim.number,
            "config": claim.config,
            "setup": self._setup(),
            "run_id": self._run_id,
        }

    # Ending

    def _is_ending(self) -> bool:
        self._beat()
        return self._ending is not None

    def _on_fatal(self, reason: str) -> None:
        self._fatal = self._fatal or reason
        self._ending = "no trial can be trained"

    def _beat(self) -> None:
        """Called by Tune's loop and by the searcher, several times a second."""
        self._study.tick()
        self._progress.tick()
        now = time.monotonic()
        if self._ends_at is not None and now >= self._ends_at:
            self._ending = self._ending or "the time budget is used up"
        if now >= self._poll_at and self._ending is None:
            self._poll_at = now + STOP_POLL_S
            if self._study.stop_requested():
                self._ending = "`hpo stop` asked for it"
        if self._ending is not None and now >= self._pause_at:
            if self._pause_at == 0.0:
                self._progress.noted(f"stopping ({self._ending}): saving every running trial")
            self._pause_at = now + PAUSE_AGAIN_S  # a host may only just be made
            for host in self._hosts():
                host.pause.remote()

    def _on_turn(self, statuses: list[str]) -> None:
        """Act at a turn of Tune's loop, given the state of its trials."""
        self._beat()
        if self._ending is not None and "RUNNING" not in statuses:
            self._leaving = True  # trials that wait for a place would wait for ever
            raise _LeavingError

    def _dismiss(self, number: int) -> None:
        """Let the hosts drop a trial that is over: its proxy may idle until the next trial comes."""
        for host in self._hosts():
            host.leave.remote(number)

    @contextlib.contextmanager
    def _signals_caught(self) -> Iterator[None]:
        def catch(number: int, _frame: object) -> None:
            self._signals += 1
            if self._signals > 1:
                raise KeyboardInterrupt
            self._ending = self._ending or f"caught {signal.Signals(number).name}"

        wanted = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup wants to go on
            wanted.append(signal.SIGHUP)
        before = {number: signal.signal(number, catch) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _check_reachable(address: str | None) -> None:
    """Knock at a cluster's door: Ray itself tries for minutes before it gives up.

    Raises:
        StudyError: Nobody answers there.
    """
    host, separator, port = (address or "").rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise StudyError(
            f"cannot join the Ray cluster {address}: {error.strerror or error}. Start its head with "
            f"`ray start --head`, or leave 'ray_address:' out to use this machine."
        ) from None
