"""The checkpoint store: one folder a checkpoint, whole or not there at all.

``<root>/<trial>/<step>/`` holds what the trainer saved, the trial's reports so far, and a manifest
with a checksum of every file. It is written under a temporary name and renamed when all of it is on
the disk. Who may delete is decided by ``hpo.study``; this only does it. No pickle is ever read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpo.errors import CheckpointError
from trainers.protocol import ADAPTER_FOLDER, Report

FORMAT = 1
MANIFEST = "manifest.json"
HISTORY = "history.json"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole.

    Attributes:
        folder: What the trainer saved, with our two files beside it.
        step: Optimizer steps done.
        history: Every validation up to here, oldest first; only the newest with what goes to the log,
            which it may not have reached.
        is_validation: Written with a validation's report, and not by a pause between two.
    """

    folder: Path
    step: int
    history: tuple[Report, ...]
    is_validation: bool

    @property
    def adapter(self) -> Path:
        """The weights that load without this package."""
        return self.folder / ADAPTER_FOLDER


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one study.

    Attributes:
        root: A folder that the driver and every node can reach.
    """

    root: Path

    def trial_folder(self, trial: int) -> Path:
        """Return the folder of a trial's checkpoints and log."""
        return self.root / str(trial)

    def write(
        self,
        trial: int,
        step: int,
        history: Sequence[Report],
        is_validation: bool,
        save: Callable[[Path], None],
    ) -> Path:
        """Write one checkpoint durably, and return its folder.

        One that is there already and whole is left as it is: the same trial at the same step. Only
        one that a pause wrote, before the step's validation was known, gives way to the validation's.

        Args:
            trial: Number of the trial.
            step: Optimizer steps done.
            history: Every validation so far.
            is_validation: Whether the newest of them was made at this very step.
            save: Writes the trainer's part into an empty folder.

        Raises:
            CheckpointError: The disk is full or may not be written.
        """
        final = self.trial_folder(trial) / str(step)
        there = self._read(trial, step, check=False)
        if there is not None and (there.is_validation or not is_validation):
            return final
        unfinished = final.with_name(f".{step}.{uuid.uuid4().hex[:8]}")
        try:
            unfinished.mkdir(parents=True)
            save(unfinished)
            newest = len(history) - 1
            reports = [_as_json(report, index == newest) for index, report in enumerate(history)]
            (unfinished / HISTORY).write_text(json.dumps(reports), encoding="utf-8")
            manifest = {
                "format": FORMAT,
                "trial": trial,
                "step": step,
                "is_validation": is_validation,
                "files": {name: _checksum(unfinished / name) for name in _files(unfinished)},
            }
            (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for path in unfinished.rglob("*"):
                _fsync(path)
            _fsync(unfinished)
            if final.exists():  # torn, or of a pause
                final.rename(final.with_name(f".gone.{step}.{uuid.uuid4().hex[:8]}"))
            unfinished.rename(final)
            self._sweep(final.parent, prefix=".gone.")
            _fsync(final.parent)
        except Exception as error:  # safetensors has errors of its own for a full disk
            shutil.rmtree(unfinished, ignore_errors=True)
            if self._read(trial, step, check=True) is not None:  # another writer was first
                return final
            reason = error.strerror if isinstance(error, OSError) else None
            raise CheckpointError(
                f"cannot write the checkpoint {final}: {reason or error}. Free space there or "
                f"mend its permissions, then type `hpo resume`: the study goes on from the "
                f"checkpoint before."
            ) from error
        return final

    def newest(self, trial: int) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; torn ones are passed over."""
        for step in reversed(self.steps(trial)):
            checkpoint = self._read(trial, step, check=True)
            if checkpoint is not None:
                return checkpoint
        return None

    def reports(self, trial: int, newest: Checkpoint) -> list[Report]:
        """Return a checkpoint's history, with what goes to the log as far as it is kept here.

        Each checkpoint has the step lines of its own validation; a killed driver may lack several.
        """
        found = {report.validation: report for report in newest.history}
        for step in self.steps(trial):
            checkpoint = self._read(trial, step, check=False)
            if checkpoint is not None and checkpoint.history and step <= newest.step:
                own = checkpoint.history[-1]
                if found.get(own.validation) == replace(own, step_lines=(), samples=()):
                    found[own.validation] = own
        return list(found.values())

    def at_step(self, trial: int, step: int) -> Checkpoint:
        """Return one checkpoint.

        Raises:
            CheckpointError: It is missing or torn.
        """
        checkpoint = self._read(trial, step, check=True)
        if checkpoint is None:
            raise CheckpointError(
                f"the checkpoint {self.trial_folder(trial) / str(step)} is missing or torn."
            )
        return checkpoint

    def steps(self, trial: int) -> list[int]:
        """Return the steps that a trial has a checkpoint of, rising; whole or not."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            names = os.listdir(self.trial_folder(trial))
            return sorted(int(name) for name in names if name.isdecimal())
        return []

    def trials(self) -> list[int]:
        """Return the trials that have a folder here."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(int(name) for name in os.listdir(self.root) if name.isdecimal())
        return []

    def delete(self, trial: int, keep: Collection[int] = ()) -> None:
        """Delete a trial's checkpoints but those of some steps; its log stays.

        A checkpoint is renamed out of sight first, so a crash leaves no torn one behind.
        """
        for step in self.steps(trial):
            if step not in keep:
                gone = self.trial_folder(trial) / f".gone.{step}.{uuid.uuid4().hex[:8]}"
                with contextlib.suppress(FileNotFoundError):
                    (self.trial_folder(trial) / str(step)).rename(gone)

        self._sweep(self.trial_folder(trial), prefix=".gone.")

    def sweep(self, trial: int, older_than_s: float) -> None:
        """Delete what killed writers left of a trial, if nothing was written there for so long."""
        self._sweep(self.trial_folder(trial), prefix=".", older_than_s=older_than_s)

    def _sweep(self, folder: Path, prefix: str, older_than_s: float = 0.0) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(folder):
                path = folder / name
                if name.startswith(prefix) and time.time() - path.stat().st_mtime >= older_than_s:
                    shutil.rmtree(path, ignore_errors=True)

    def _read(self, trial: int, step: int, *, check: bool) -> Checkpoint | None:
        folder = self.trial_folder(trial) / str(step)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            _refuse_newer(folder, manifest["format"])
            files = manifest["files"]
            whole = manifest["format"] == FORMAT and all(
                (folder / name).stat().st_size == expected["bytes"]
                and (not check or _checksum(folder / name) == expected)
                for name, expected in files.items()
            )
            if not whole:
                return None
            history = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
            return Checkpoint(
                folder=folder,
                step=int(manifest["step"]),
                history=tuple(_from_json(report) for report in history),
                is_validation=bool(manifest["is_validation"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _refuse_newer(folder: Path, written: object) -> None:
    """Refuse what only a newer version can read: passed over, its trial would begin again."""
    if isinstance(written, int) and written > FORMAT:
        raise CheckpointError(
            f"{folder} is a checkpoint of format {written}, and this version of hpo knows {FORMAT}: a "
            f"newer one wrote it. Update hpo, or remove the folder to go on without it."
        )


def _as_json(report: Report, is_newest: bool) -> dict[str, object]:
    """Return a report, without what the log has of it long since."""
    return asdict(report if is_newest else replace(report, step_lines=(), samples=()))


def _from_json(report: Mapping[str, Any]) -> Report:
    listed = ("step_lines", "samples", "notes")  # a checkpoint of old has none of them
    return Report(**{**report, **{name: tuple(report.get(name, ())) for name in listed}})


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _checksum(path: Path) -> dict[str, object]:
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "blake2b": digest.hexdigest()}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
