"""One trial's stay on a host, and the note of it that outlives the host.

A host that dies says nothing any more. So it keeps a note of each stay beside Ray's logs on its node:
whether the trial only waited there, was trained when the process died, or what the host knew of its
end. The driver reads it there.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from hpo.cluster.messages import Word
from trainers.protocol import Report

State = Literal["loading", "waiting", "present", "over", "lost", "failed"]


@dataclass(frozen=True)
class Note:
    """What a host knew of a stay.

    Attributes:
        state: ``loading`` the model; ``waiting`` for room; ``present`` on the trainer; ``over``:
            nothing is lost with the host; ``lost`` with it, which the host knew; ``failed`` by its
            own error.
        message: Why it is lost or failed.
        validation: Index of its newest one.
        step: Of its newest report or checkpoint.
    """

    state: State
    message: str = ""
    validation: int = 0
    step: int = 0


def write_note(path: Path | None, note: Note) -> None:
    """Write a note whole. It is for a process's end, not a machine's: the disk is not waited for."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(asdict(note)), encoding="utf-8")
    fresh.replace(path)


def read_note(path: Path) -> Note | None:
    """Return a host's note; None if it has made none: its model was loading."""
    try:
        return Note(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


@dataclass
class Seat:
    """One trial on this host.

    Attributes:
        stay: Of this stay, rising; a trial that comes again has a later one.
        config: The trainer's whole config.
        alone: It may share the trainer with nobody.
        path: Of the note.
        history: Its validations so far.
        words: Not heard yet.
        steps_seen: Of its newest report or checkpoint.
        steps_done: Optimizer steps.
        joined: The trainer has it.
        ended: It has said its last word.
        awaits_verdict: It has reported, and not heard yet that it goes on.
    """

    stay: int
    config: Mapping[str, object]
    alone: bool = False
    path: Path | None = None
    history: list[Report] = field(default_factory=list)
    words: deque[Word] = field(default_factory=deque)
    steps_seen: int = 0
    steps_done: int = 0
    joined: bool = False
    ended: bool = False
    awaits_verdict: bool = False

    def note(self, state: State, message: str = "") -> None:
        """Write down what would be true of it if this process died now."""
        write_note(self.path, Note(state, message, len(self.history), self.steps_seen))
