"""Drivers of one study in processes of their own, without Ray, to be killed, frozen and raced."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo import study as study_module
from hpo.errors import ExhaustedError, LeaseLostError
from hpo.studies import open_study
from hpo.study import Claim, Study
from tests.one_worker import Worker

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.integration.drivers"])


@dataclass(frozen=True)
class Driver:
    """A driver's process.

    Attributes:
        process: Of multiprocessing.
        journal: A file with one JSON value a line: what it did.
    """

    process: Any
    journal: Path

    def said(self) -> list[Any]:
        """Return the whole lines of the journal."""
        if not self.journal.exists():
            return []
        lines = self.journal.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.process.pid, number)

    def ended(self, within_s: float = 60) -> int:
        """Return the exit code."""
        self.process.join(within_s)
        assert self.process.exitcode is not None, f"the driver still runs after {within_s} s"
        return int(self.process.exitcode)


def drive(what: Callable[..., None], url: str, folder: Path, *args: object) -> Driver:
    """Begin a driver: ``what(url, journal, *args)`` in a process of its own."""
    journal = folder / f"journal-{time.monotonic_ns()}"
    process = CONTEXT.Process(target=what, args=(url, str(journal), *args), daemon=True)
    process.start()
    return Driver(process, journal)


def take_all(url: str, journal: str, num_trials: int) -> None:
    """Take trials, new or interrupted, until there is none left, and leave them as a crash does."""
    study = Study(open_study("s", url), num_trials)
    while (claim := _next(study)) is not None:
        _say(journal, [claim.number, claim.epoch, study.owner])


def train_all(url: str, journal: str, num_trials: int) -> None:
    """Train until every trial has ended, here or elsewhere."""
    study = Study(open_study("s", url), num_trials)
    worker = Worker(study)
    while True:
        try:
            claim = study.next_trial()
        except ExhaustedError:
            break
        study.tick()
        if claim is None:
            time.sleep(0.01)
            continue
        _say(journal, [claim.number, claim.epoch, study.owner])
        try:
            worker.train(claim.number, claim.config)
        except LeaseLostError:
            study.drop(claim.number)
            _say(journal, ["lost", claim.number])
    study.close()


def stand_in(url: str, journal: str, lock: int, wait_in: str) -> None:
    """Freeze with a lock or a row held; once thawed, go on and say how that went."""
    study = Study(open_study("s", url), 3)
    claim = study.next_trial()
    assert claim is not None
    _say(journal, "ready")
    if wait_in == "turn":
        with study._exclusive(study_module.Lock(lock)) as turn:
            _say(journal, "holds")
            _wait_for(Path(journal).with_suffix(".go"))
            _say(journal, ["lasts", turn.lasts()])
    else:
        stood = False
        hold = study._rows._leases.hold.__func__  # type: ignore[attr-defined]

        def slow_hold(leases: Any, *args: object) -> None:
            nonlocal stood
            hold(leases, *args)
            if not stood:
                stood = True
                _say(journal, "holds")
                _wait_for(Path(journal).with_suffix(".go"))

        type(study._rows._leases).hold = slow_hold  # type: ignore[method-assign, assignment]
        try:
            study.lose(claim.number, "its node was lost")  # a report is one statement on a server
            _say(journal, ["wrote", claim.number])
        except LeaseLostError:
            study.drop(claim.number)
            _say(journal, ["lost", claim.number])
    study._renew_at = 0.0
    _say(journal, ["ticked", sorted(study.tick())])
    claim = _next(study)
    _say(journal, ["next", None if claim is None else claim.number])


def open_only(url: str, journal: str) -> None:
    """Open a database that may be empty, together with others."""
    from hpo.storage.database import Database

    Database(url).close()
    _say(journal, "open")


def _next(study: Study) -> Claim | None:
    try:
        return study.next_trial()
    except ExhaustedError:
        return None


def _say(journal: str, what: object) -> None:
    with Path(journal).open("a") as file:
        file.write(json.dumps(what) + "\n")


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)
