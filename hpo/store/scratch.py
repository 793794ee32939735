"""Local folders of this process for a store at a URL: what is being uploaded, and what was downloaded.

They lie in the user's cache, are bounded by one downloaded checkpoint a trial, and go with the process;
those of killed processes go when the next one begins.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import uuid
from pathlib import Path

import psutil


def cache_folder() -> Path:
    """Return ``$HPO_CACHE``, or ``~/.cache/hpo`` where it is not set."""
    return Path(os.environ.get("HPO_CACHE") or "~/.cache/hpo").expanduser().absolute()


class Scratch:
    """Folders that this process alone uses."""

    def __init__(self) -> None:
        self._root: Path | None = None
        self._owner = 0
        self._downloads: dict[int, Path] = {}

    def folder(self) -> Path:
        """Return a new, empty folder."""
        folder = self._place() / uuid.uuid4().hex[:8]
        folder.mkdir(parents=True)
        return folder

    def keep(self, trial: int, folder: Path) -> None:
        """Keep a downloaded checkpoint in place of the trial's last one."""
        self.drop(trial)
        self._downloads[trial] = folder

    def drop(self, trial: int) -> None:
        """Remove what was downloaded of a trial."""
        folder = self._downloads.pop(trial, None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _place(self) -> Path:
        if self._root is None or self._owner != os.getpid():  # after a fork, too
            all_of_them = cache_folder() / "scratch"
            _sweep(all_of_them)
            self._owner = os.getpid()
            self._downloads = {}
            self._root = all_of_them / f"{_host()}-{self._owner}-{uuid.uuid4().hex[:8]}"
            self._root.mkdir(parents=True)
            atexit.register(shutil.rmtree, self._root, ignore_errors=True)
        return self._root


def _host() -> str:
    return os.uname().nodename.replace("-", "_")


def _sweep(folder: Path) -> None:
    """Remove the folders of this machine's dead processes."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            host, _, rest = name.partition("-")
            pid = rest.partition("-")[0]
            if host == _host() and pid.isdecimal() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(folder / name, ignore_errors=True)
