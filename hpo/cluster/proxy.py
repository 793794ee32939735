"""What Tune sees of a trial: a thin actor that holds its place and passes on its reports.

Imports neither torch nor Tune. It asks the host on its device for the trial's next report, and makes
that host if it is the first one there. It always answers within a few seconds, so that its silence
means something; a host that is silent too long it kills. Reused for the next trial.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from hpo.cluster import last_words
from hpo.cluster.messages import HostSetup, Loss, Word
from hpo.cluster.placing import cpu, host_on
from hpo.cluster.seats import read_note
from trainers.protocol import Report

START_S = 120.0
"""A host's process may take so long to begin, or longer if its trainer may be silent for longer."""

MAX_FALSE_STARTS = 10
"""A name may still belong to a host that is just dying; then it is tried again, once a second."""

REPLACE_HOST_S = 1.0

WORDS = "words"


class TrialProxy:
    """One trial, or one after the other, on the device that Ray gave this actor.

    Its methods are those that Tune calls of a trainable. Its config: ``number``, ``config`` (the
    trainer's), ``setup`` (HostSetup), ``run_id``, ``cpu_host`` (which of the hosts where there is no
    GPU), and what a host takes: ``stay`` and ``alone``.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Take a trial; the first word that it is asked for joins the host of this device."""
        self._lost_pid: int | None = None
        self._take(config)

    def reset(self, config: dict[str, Any]) -> bool:
        """Leave with the last trial and join with the next."""
        self._leave()
        self._take(config)
        return True

    def train(self) -> dict[str, Any]:
        """Return what there is to say of the trial now: news, or that it is alive."""
        return {WORDS: self._words(), "number": self._number, "stay": self._stay}

    def get_auto_filled_metrics(self, debug_metrics_only: bool) -> dict[str, Any]:
        """Return nothing: Tune asks this of each trainable that begins."""
        return {}

    def stop(self) -> None:
        """Leave the host."""
        self._leave()

    def _take(self, config: dict[str, Any]) -> None:
        self._number = int(config["number"])
        self._trial_config = config["config"]
        self._setup: HostSetup = config["setup"]
        self._run_id = str(config["run_id"])
        self._cpu_host = int(config["cpu_host"])
        self._stay = int(config["stay"])
        self._alone = bool(config["alone"])
        # Ray has no public name for the folder in which it keeps this node's logs.
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        self._note = session / "hpo-stays" / f"{self._run_id}-{self._number}-{self._stay}"
        self._logs = session / "logs"
        self._host: Any = None
        self._asked: Any = None
        self._asked_at = 0.0
        self._pid: int | None = None
        self._false_starts = 0
        self._last = Word(waiting=True)

    # What it says

    def _words(self) -> list[Word]:
        try:
            if self._asked is None:
                self._ask()
            if ray.wait([self._asked], timeout=self._setup.alive_s)[0]:
                return self._heard(ray.get(self._asked))
        except RayActorError as error:
            return [self._lost(last_words.DIED, last_words.pid_in(str(error)))]
        limit = self._setup.stall_timeout
        if self._pid is None:
            limit = max(limit, START_S)
        if time.monotonic() - self._asked_at <= limit:
            return [self._last]
        self._kill_host()
        cause = f"stalled: its host process did not answer for {limit:g} s"
        return [self._lost(cause, self._pid)]

    def _ask(self) -> None:
        """Ask the host for the trial's next word; first, to let it join."""
        self._asked_at = time.monotonic()
        if self._host is None:
            self._host = self._find_host()
        if self._pid is None:
            self._asked = self._host.join.remote(
                self._number, self._trial_config, self._stay, self._alone, self._note
            )
        else:
            self._asked = self._host.next_words.remote(
                self._number, self._setup.alive_s, self._stay
            )

    def _heard(self, answer: Any) -> list[Word]:
        self._asked = None
        if self._pid is None:
            self._pid = int(answer)
            return [self._last]
        words: list[Word] = answer
        if not words[-1].is_news:
            self._last = words[-1]
        return words

    def _lost(self, cause: str, pid: int | None) -> Word:
        """Return what became of the trial when its host ended, as far as anyone can tell."""
        self._host = self._asked = self._pid = None
        time.sleep(REPLACE_HOST_S)  # its name is free when Ray has noticed, too
        note = read_note(self._note)
        is_old = pid in (None, self._lost_pid)
        self._lost_pid = pid
        if note is None and is_old and self._false_starts < MAX_FALSE_STARTS:
            self._false_starts += 1
            return self._last
        output = last_words.output_of(self._logs, pid)
        if note is None or note.state in ("loading", "waiting", "over"):
            cause = last_words.cause_of(note.message if note and note.message else cause, output)
            has_loaded = note is not None and note.state != "loading"
            return Word(loss=Loss(cause, False, f"{self._logs}:{pid}", has_loaded, output))
        if note.state == "failed":
            return Word(
                report=Report(
                    self._number, note.validation, note.step, end="failed", message=note.message
                )
            )
        cause = last_words.cause_of(note.message or cause, output)
        return Word(loss=Loss(cause, True, f"{self._logs}:{pid}", True, output))

    # Its host

    def _find_host(self) -> Any:
        gpus = ",".join(str(gpu) for gpu in sorted(ray.get_gpu_ids()))
        node_id = ray.get_runtime_context().get_node_id()
        return host_on(node_id, gpus or cpu(self._cpu_host), self._run_id, self._setup)

    def _kill_host(self) -> None:
        if self._pid is not None:  # Ray gives a frozen process five seconds more
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(RayActorError):
            ray.kill(self._host)

    def _leave(self) -> None:
        if self._host is not None:
            self._host.leave.remote(self._number, self._stay)  # waits for nobody: it may be frozen
        self._host = None
        self._note.unlink(missing_ok=True)
