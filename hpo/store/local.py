"""Checkpoints in a local folder: written under a temporary name, fsynced, renamed.

``.STEP.ID`` is being written, ``.moved.STEP.ID`` gave way to a newer one of the same step,
``.gone.STEP.ID`` is being deleted, by a thread of its own: on a busy disk each file takes milliseconds.
A process that was killed leaves one of them, and nothing that counts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from hpo import faults
from hpo.store import manifest as manifests
from hpo.store.manifest import MANIFEST, Manifest, RefusedError

_TRIES = 5


class LocalShelf:
    """Puts, gets and removes checkpoints in a folder that the driver and every node can reach."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root
        self._deleter: ThreadPoolExecutor | None = None
        self._deletion: Future[None] | None = None

    def where(self, trial: int, step: int) -> str:
        """Return a checkpoint's place, for people."""
        return str(self._folder(trial, step))

    def trials(self) -> list[int]:
        """Return the trials that have a folder here."""
        return sorted(int(name) for name in _names(self.root) if name.isdecimal())

    def steps(self, trial: int) -> list[int]:
        """Return the steps of a trial's checkpoints, whole or not."""
        return sorted(int(n) for n in _names(self.root / str(trial)) if n.isdecimal())

    def listing(self) -> dict[int, list[int]]:
        """Return the steps of every trial's checkpoints."""
        return {trial: self.steps(trial) for trial in self.trials()}

    def put(self, trial: int, step: int, fill: Callable[[Path, str | None], None]) -> None:
        """Put a checkpoint in its place in one rename.

        Args:
            trial: Number.
            step: Optimizer steps done.
            fill: Writes all of its files, the manifest too, into an empty folder.
        """
        final = self._folder(trial, step)
        unfinished = final.with_name(f".{step}.{_mark()}")
        try:
            unfinished.mkdir(parents=True)
            fill(unfinished, None)
            for path in unfinished.rglob("*"):
                fsync(path)
            fsync(unfinished)
            faults.reached("checkpoint listed")
            self._swap(unfinished, final, step)
        except Exception:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        self._sweep(final.parent, f".moved.{step}.")
        fsync(final.parent)
        faults.reached("checkpoint renamed")

    def _swap(self, unfinished: Path, final: Path, step: int) -> None:
        for tries_left in reversed(range(_TRIES)):
            if final.exists():  # torn, or of a pause
                final.rename(final.with_name(f".moved.{step}.{_mark()}"))
                faults.reached("checkpoint moved")
            try:
                unfinished.rename(final)
                return
            except OSError:  # a reader has repaired what it took for a killed writer's
                if not tries_left or not final.exists():
                    raise

    def peek(self, trial: int, step: int) -> tuple[Manifest, bytes]:
        """Return a checkpoint's manifest and history; of the rest, the sizes are right.

        Raises:
            RefusedError: It is not whole, as far as that shows.
        """
        folder = self._folder(trial, step)
        try:
            found = manifests.parse(manifests.read_limited(folder / MANIFEST), trial, step)
            manifests.verify(folder, found, deeply=False)
            return found, (folder / manifests.HISTORY).read_bytes()
        except OSError as error:
            raise RefusedError(f"it cannot be read: {error.strerror or error}") from None

    def get(self, trial: int, step: int, found: Manifest) -> Path:
        """Return the local folder of a checkpoint whose bytes are verified.

        Raises:
            RefusedError: They are not those that were written.
        """
        folder = self._folder(trial, step)
        try:
            manifests.verify(folder, found, deeply=True)
        except OSError as error:
            raise RefusedError(f"it cannot be read: {error.strerror or error}") from None
        return folder

    def repair(self, trial: int) -> None:
        """Put back what had given way when its writer was killed between two renames."""
        folder = self.root / str(trial)
        for name in _names(folder):
            step = name.removeprefix(".moved.").partition(".")[0]
            if name.startswith(".moved.") and step.isdecimal() and not (folder / step).exists():
                with contextlib.suppress(OSError):  # another reader was first
                    (folder / name).rename(folder / step)

    def remove(self, trial: int, step: int) -> None:
        """Delete a checkpoint; out of sight at once, so that a crash leaves no torn one."""
        folder = self.root / str(trial)
        faults.reached("deleting")
        with contextlib.suppress(FileNotFoundError):
            (folder / str(step)).rename(folder / f".gone.{step}.{_mark()}")
        faults.reached("deleted")
        if self._deleter is None:
            self._deleter = ThreadPoolExecutor(1, "delete")
        self._deletion = self._deleter.submit(self._free, folder, step)

    def finish_deleting(self) -> None:
        """Wait until what was removed is gone."""
        if self._deletion is not None:
            self._deletion.result()

    def _free(self, folder: Path, step: int) -> None:
        self._sweep(folder, f".gone.{step}.")
        self._sweep(folder, f".moved.{step}.")

    def sweep(self, trial: int, older_than_s: float) -> None:
        """Delete what killed writers left of a trial, if nothing was written there for so long."""
        self.repair(trial)
        self._sweep(self.root / str(trial), ".gone.")
        self._sweep(self.root / str(trial), ".", older_than_s)

    def clear(self) -> None:
        """Delete the study's folder."""
        self.finish_deleting()
        shutil.rmtree(self.root, ignore_errors=True)

    def drop(self, trial: int) -> None:
        """Nothing was downloaded."""

    def used_bytes(self) -> int:
        """Return what the study's folder takes."""
        return size_of(self.root)

    def _folder(self, trial: int, step: int) -> Path:
        return self.root / str(trial) / str(step)

    def _sweep(self, folder: Path, prefix: str, older_than_s: float = 0.0) -> None:
        for name in _names(folder):
            path = folder / name
            if not name.startswith(prefix):
                continue
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime >= older_than_s:
                    shutil.rmtree(path, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Return the bytes of all files under a folder; what vanishes or is being deleted does not count."""
    found = 0
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.name.startswith(".gone."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    found += size_of(Path(entry.path))
                else:
                    found += entry.stat(follow_symlinks=False).st_size
    return found


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.listdir(folder)
    return []


def _mark() -> str:
    return uuid.uuid4().hex[:8]


def fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
