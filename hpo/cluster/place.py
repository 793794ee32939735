"""A trial's place on a device, as the driver holds it: Ray keeps it free, a host trains the trial there.

It asks the host for the trial's next report, and makes that host if it is the first one there. What
becomes of the trial when its host dies, is told by the note that the host has left on its node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup

from hpo.cluster import last_words
from hpo.cluster.messages import HostSetup, Loss, Word
from hpo.cluster.on_node import done_on, end_process, left_by
from hpo.cluster.placing import cpu, host_on
from hpo.cluster.seats import Note
from trainers.protocol import Report

START_S = 120.0
"""A host's process may take so long to begin, or longer if its trainer may be silent for longer."""

MAX_FALSE_STARTS = 10
"""A name may still belong to a host that is just dying; then it is tried again, once a second."""

NODE_LOST = "its node was lost"


class Place:
    """A placement group for one trial, or for one after the other.

    Attributes:
        group: Ray's.
        request: What is asked of the node: ``CPU``, ``GPU``.
        is_lost: With its node: no other trial can come here.
    """

    def __init__(self, group: PlacementGroup, request: dict[str, float]) -> None:
        """Wait for Ray."""
        self.group = group
        self.request = request
        self.is_lost = False
        self._node_id = ""
        self._gpus = ""
        self._lost_pid: int | None = None
        self._host: Any = None
        self._pid: int | None = None
        self._has_left = False

    def settle(self, node_id: str, gpus: str) -> None:
        """Note where Ray has put it.

        Args:
            node_id: Ray's.
            gpus: Their ids with commas between; empty: none.
        """
        self._node_id = node_id
        self._gpus = gpus

    def take(self, config: Mapping[str, Any]) -> None:
        """Take a trial; the first word that it is asked for lets it join the host.

        Args:
            config: ``number``, ``config`` (the trainer's), ``setup`` (HostSetup), ``run_id``,
                ``cpu_host`` (which of the hosts where there is no GPU), and what a host takes:
                ``stay`` and ``alone``.
        """
        self.number = int(config["number"])
        self.stay = int(config["stay"])
        self._trial_config = config["config"]
        self._setup: HostSetup = config["setup"]
        self._run_id = str(config["run_id"])
        self._cpu_host = int(config["cpu_host"])
        self._alone = bool(config["alone"])
        self._note = f"{self._run_id}-{self.number}-{self.stay}"
        self._forget_host()
        self._false_starts = 0
        self._cause = last_words.DIED
        self._last = Word(waiting=True)
        self._is_waiting = True

    def leave(self) -> None:
        """Let the trial leave its host. Waits for nobody: it may be frozen."""
        if self._host is not None and not self._has_left:
            self._has_left = True
            self._host.leave.remote(self.number, self.stay)

    # What is heard

    def ask(self) -> Any:
        """Return the future of what the host answers next; first, that the trial has joined."""
        if self._host is None:
            device = self._gpus or cpu(self._cpu_host)
            self._host = host_on(self._node_id, device, self._run_id, self._setup)
        if self._pid is None:
            return self._host.join.remote(
                self.number, self._trial_config, self.stay, self._alone, self._note
            )
        return self._host.next_words.remote(self.number, self._setup.alive_s, self.stay)

    def heard(self, answer: Any) -> list[Word]:
        """Return the words in a host's answer."""
        if self._pid is None:
            self._pid = int(answer)
            return [self._last]
        words: list[Word] = answer
        self._is_waiting = words[-1].waiting
        if not words[-1].is_news:
            self._last = words[-1]
        return words

    def unheard(self) -> Word:
        """Return what is known of a trial whose host cannot be reached just now.

        It joins again, so that a report that was lost on its way is said again.
        """
        self._forget_host()
        return self._last

    def left(self, error: Exception) -> Any:
        """Return the future of what is left of the trial where its host has ended."""
        self._failed_with = error
        if self._pid is None:
            self._pid = last_words.pid_in(str(error))
        return done_on(self._node_id, left_by, self._note, self._pid)

    def mourned(self, left: tuple[Note | None, str, str]) -> Word:
        """Return what became of the trial when its host ended, as far as anyone can tell."""
        note, output, logs = left
        pid = self._pid
        self.leave()  # it may be alive, and only have failed to answer
        self._forget_host()
        is_old = pid in (None, self._lost_pid)
        self._lost_pid = pid
        if note is None and is_old and self._false_starts < MAX_FALSE_STARTS:
            self._false_starts += 1
            return self._last
        host = f"{logs}:{pid}"
        cause = self._cause
        if not isinstance(self._failed_with, RayActorError):
            cause = f"its host failed: {str(self._failed_with).strip().splitlines()[-1]}"
        said = last_words.cause_of(note.message if note and note.message else cause, output)
        if note is None or note.state in ("loading", "waiting", "over"):
            has_loaded = note is not None and note.state != "loading"
            return Word(loss=Loss(said, False, host, has_loaded, output))
        if note.state == "failed":
            end = Report(
                self.number, note.validation, note.step, end="failed", message=note.message
            )
            return Word(report=end)
        return Word(loss=Loss(said, True, host, True, output))

    def lost(self) -> Word:
        """Return what became of the trial when its node was lost."""
        self.leave()
        self.is_lost = True
        return Word(loss=Loss(NODE_LOST, not self._is_waiting, self._node_id, True))

    # Its host

    def _forget_host(self) -> None:
        self._host = self._pid = None
        self._has_left = False

    @property
    def limit_s(self) -> float:
        """How long the host may say nothing."""
        stall_timeout = self._setup.stall_timeout
        return max(stall_timeout, START_S) if self._pid is None else stall_timeout

    def shares_host(self, other: Place) -> bool:
        """Return whether a trial of another place is on the same host."""
        return self._host is not None and self._host == other._host

    def blame(self, cause: str) -> None:
        """Note why its host is about to end."""
        self._cause = cause

    def kill_host(self) -> None:
        """Kill a host that does not answer."""
        if self._pid is not None:
            done_on(self._node_id, end_process, self._pid)
        ray.kill(self._host)
