"""Logs of a study at a URL: kept in a local folder, pushed after each append, pulled elsewhere.

A thread pushes, so that no trial waits for the network. Logs are not the truth: what could not be
pushed is said once, and the next push brings it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path

from hpo.errors import CheckpointError
from hpo.store.remote import RemoteShelf

log = logging.getLogger(__name__)

NAMES = ("metrics.jsonl", "samples.jsonl")
FLUSH_S = 30.0
SHARED = ("trackers", "tensorboard", "plots", "mlflow", "wandb", "comet", "trackio")
"""Folders of the whole study, beside its trials': what trackers note and write."""


class RemoteLogs:
    """The local work folder of a driver, in step with the store."""

    def __init__(self, shelf: RemoteShelf) -> None:
        self._shelf = shelf
        self._pulled: set[int] = set()
        self._shared_pulled = False
        self._waiting: set[int] = set()
        self._busy = False
        self._warned = False
        self._sent: dict[Path, tuple[int, int]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def trial_folder(self, trial: int) -> Path:
        """Return the local folder of a trial's log, as the store has it if we have not looked yet."""
        folder = self._shelf.work / str(trial)
        if trial not in self._pulled:
            self._pulled.add(trial)
            for name in NAMES:
                self._shelf.pull(f"{trial}/{name}", folder / name)
        return folder

    def pull_shared(self) -> None:
        """Bring here what the trackers noted on other machines."""
        if self._shared_pulled:
            return
        self._shared_pulled = True
        for top in SHARED:
            for name in self._shelf.names(top):
                target = self._shelf.work / top / name
                if not target.exists():
                    self._shelf.pull(f"{top}/{name}", target)

    def push(self, trial: int) -> None:
        """Let a trial's log be pushed, soon."""
        with self._changed:
            self._waiting.add(trial)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="push-logs", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, wait_s: float = FLUSH_S) -> None:
        """Wait until all logs are pushed, but not longer; then push what trackers have written."""
        deadline = time.monotonic() + wait_s
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy, wait_s)
        for top in SHARED:
            for path in sorted((self._shelf.work / top).rglob("*")):
                if path.is_file() and time.monotonic() < deadline:
                    self._send(path)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                trial = self._waiting.pop()
                self._busy = True
            for name in NAMES:
                self._send(self._shelf.work / str(trial) / name)
            for path in (self._shelf.work / "trackers").glob(f"*/{trial}.json"):
                self._send(path)
            self._send(self._shelf.work / "trackers" / "key")
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _send(self, path: Path) -> None:
        """Push a file, if it has changed since it was pushed."""
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            state = (stat.st_size, stat.st_mtime_ns)
            if self._sent.get(path) == state:
                return
            try:
                self._shelf.push(path, path.relative_to(self._shelf.work).as_posix())
                self._sent[path] = state
            except CheckpointError as error:
                if not self._warned:
                    self._warned = True
                    log.warning("logs are kept in %s alone for now: %s", self._shelf.work, error)
