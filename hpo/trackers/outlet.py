"""The driver's side of the trackers: starts a process for each, tells it of trials, waits for none.

A trial's news are a few words ("look at its log"), and only the newest of each trial waits to be sent, so
that a tracker that hangs holds nothing up and fills no memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from hpo.storage.database import without_secrets
from hpo.trackers import TRACKERS
from hpo.trackers.tracker import Ending, Run

FLUSH_S = 10.0
"""A run waits so long for its trackers in the end, all of them together."""


class Outlets:
    """All trackers of one run of a study."""

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        study: str,
        metric: str | None,
        run_name: str,
        defaults: Mapping[str, object] | None = None,
    ) -> None:
        """Start a process for each tracker.

        Args:
            names: Keys of ``TRACKERS``.
            folder: The study's.
            study: Its name, which groups the runs.
            metric: What it goes by.
            run_name: A format of ``study``, ``number`` and the trainer's options.
            defaults: Of these options, where a trial's config leaves one out.
        """
        self._folder = folder.resolve()
        self._study = study
        self._metric = metric
        self._run_name = run_name
        self._defaults = defaults or {}
        self._key = _study_key(self._folder) if names else ""
        self._said: queue.Queue[str] = queue.Queue()
        self._outlets: list[_Outlet] = []
        for name in names:
            try:
                self._outlets.append(_Outlet(name, self._folder, study, self._said))
            except OSError as error:
                self._said.put(f"warning: {name} cannot be started: {error}")

    def tell(
        self,
        number: int,
        config: Mapping[str, object],
        log_folder: Path,
        ending: Ending | None = None,
    ) -> None:
        """Tell every tracker that a trial has news in its log, or is over. Never waits."""
        if not self._outlets:
            return
        run = Run(
            study=self._study,
            number=number,
            name=run_name(self._run_name, self._study, number, {**self._defaults, **config}),
            key=f"{self._study}-{number}-{self._key}",
            folder=self._folder,
            log_folder=log_folder.resolve(),
            config=dict(config),
            metric=self._metric,
        )
        message = json.dumps(
            {"run": asdict(run), "ending": None if ending is None else asdict(ending)}, default=str
        )
        for outlet in self._outlets:
            outlet.tell(number, message)

    def heard(self) -> list[str]:
        """Return what trackers have said since the last call: warnings, where to look."""
        said = []
        with contextlib.suppress(queue.Empty):
            while True:
                said.append(self._said.get_nowait())
        return said

    def close(self, wait_s: float = FLUSH_S) -> list[str]:
        """Let the trackers finish, for so long at most; return what they have said."""
        for outlet in self._outlets:
            outlet.finish()
        deadline = time.monotonic() + wait_s
        for outlet in self._outlets:
            outlet.join(max(0.0, deadline - time.monotonic()))
        self._outlets = []
        return self.heard()


class _Outlet:
    """One tracker's process, with a thread that writes to it and one that listens."""

    def __init__(self, name: str, folder: Path, study: str, said: queue.Queue[str]) -> None:
        self._name = name
        self._said = said
        self._warned = False
        self._changed = threading.Condition()
        self._news: dict[int, str] = {}
        self._finishing = False
        path = [entry for entry in sys.path if entry]
        arguments = (TRACKERS[name].target, name, str(folder), study, str(FLUSH_S))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hpo.trackers", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the driver
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )
        self._threads = [
            threading.Thread(target=self._write, name=f"to-{name}", daemon=True),
            threading.Thread(target=self._listen, name=f"from-{name}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def tell(self, number: int, message: str) -> None:
        with self._changed:
            self._news[number] = message
            self._changed.notify()

    def finish(self) -> None:
        with self._changed:
            self._finishing = True
            self._changed.notify()

    def join(self, wait_s: float) -> None:
        """Wait for the process to leave, and end it if it does not."""
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._warn(f"has not taken everything within {FLUSH_S:g} s and was ended")
        with contextlib.suppress(ProcessLookupError, PermissionError):  # and what it has started
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._threads[1].join(1.0)

    def _write(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has died: the listener says so
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._news or self._finishing)
                    news, self._news = self._news, {}
                    finishing = self._finishing
                for message in news.values():
                    stdin.write(message + "\n")
                stdin.flush()
                if finishing and not self._news:
                    break
        with contextlib.suppress(OSError, ValueError):
            stdin.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        parted = False
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                parted |= "bye" in message
                if "note" in message:
                    self._said.put(without_secrets(str(message["note"])))
                if "warning" in message:
                    self._warn(str(message["warning"]))
        if not parted:
            self._warn("its process died")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            self._said.put(
                f"warning: {self._name} does not get everything: {without_secrets(reason)}. Trials "
                f"and their logs are not affected; a resume of the study sends what is missing."
            )


def run_name(template: str, study: str, number: int, config: Mapping[str, object]) -> str:
    """Return a trial's readable name; an option that this trial has not is left empty.

    The format was tried when the file was read. A value that it does not fit (a mapping among
    numbers, say) must not end a trial, so such a one is named by its number.
    """
    values = defaultdict(str, {**config, "study": study, "number": number})
    try:
        return template.format_map(values)
    except (ValueError, TypeError, LookupError, AttributeError):
        return f"{study}-{number}"


def _study_key(folder: Path) -> str:
    """Return what tells this study from others of its name: made once, kept in its folder."""
    path = folder / "trackers" / "key"
    key = uuid.uuid4().hex[:8]
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(key)
        return path.read_text(encoding="utf-8").strip() or key
    return key
