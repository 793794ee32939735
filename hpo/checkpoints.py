"""The checkpoint store: one folder a checkpoint, whole or not there at all.

``<root>/<trial>/<step>/`` holds what the trainer saved, the trial's reports so far, and a manifest with a
checksum of every file. How files get there and back is in ``hpo.store``. Who may delete is decided by
``hpo.study``; this only does it. No pickle is ever read.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hpo import faults
from hpo.errors import CheckpointError
from hpo.store import address as addresses
from hpo.store import manifest as manifests
from hpo.store.local import LocalShelf
from hpo.store.logs import RemoteLogs
from hpo.store.manifest import HISTORY, MANIFEST, Manifest, RefusedError
from hpo.store.quota import Quota
from hpo.store.remote import RemoteShelf
from trainers.protocol import ADAPTER_FOLDER, Report

log = logging.getLogger(__name__)

_REPORT: TypeAdapter[Report] = TypeAdapter(Report)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole.

    Attributes:
        folder: What the trainer saved, with our two files beside it. Local: at a URL, a download
            that stays until this process writes or deletes a checkpoint of the trial, or ends.
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


class CheckpointStore:
    """The checkpoints of one study.

    Attributes:
        root: A folder that the driver and every node can reach, or a URL.
        work: Where logs and what trackers write lie on this machine: the root, if it is a folder.
    """

    def __init__(self, root: str | Path, disk_quota_gib: float | None = None) -> None:
        """Open a store; nothing is made and nothing is looked at.

        Args:
            root: A folder or a URL.
            disk_quota_gib: What all of it may take.

        Raises:
            CheckpointError: Nothing here understands the address.
        """
        self._shelf: LocalShelf | RemoteShelf
        self._logs: RemoteLogs | None = None
        if addresses.is_url(root):
            self.root: str | Path = str(root)
            self._shelf = RemoteShelf(str(root))
            self._logs = RemoteLogs(self._shelf)
        else:
            self.root = addresses.local_folder(root)
            self._shelf = LocalShelf(self.root)
        self.work = self._shelf.work
        self._quota = Quota(self._shelf, disk_quota_gib)
        self._warned: set[tuple[int, int]] = set()
        self._warnings: list[str] = []

    @classmethod
    def of_study(
        cls, output_dir: str, study: str, disk_quota_gib: float | None = None
    ) -> CheckpointStore:
        """Return the store of a study in its ``output_dir``."""
        return cls(addresses.child(output_dir, study), disk_quota_gib)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return self._shelf.is_local

    @property
    def shelf(self) -> LocalShelf | RemoteShelf:
        """How files get there and back; for what is stored beside the checkpoints."""
        return self._shelf

    def shown(self, *names: str) -> str:
        """Return the address of something in it, for people."""
        return addresses.shown(addresses.child(self.root, *names))

    def check(self) -> None:
        """Check that a store at a URL can be used.

        Raises:
            CheckpointError: It cannot; with what to do.
        """
        addresses.check_usable(self.root)

    # Writing

    def write(
        self,
        trial: int,
        step: int,
        history: Sequence[Report],
        is_validation: bool,
        save: Callable[[Path], None],
    ) -> None:
        """Write one checkpoint durably.

        One that is there already and whole is left as it is: the same trial at the same step. Only
        one that a pause wrote, before the step's validation was known, gives way to the validation's.

        Args:
            trial: Number of the trial.
            step: Optimizer steps done.
            history: Every validation so far.
            is_validation: Whether the newest of them was made at this very step.
            save: Writes the trainer's part into an empty folder.

        Raises:
            CheckpointError: The disk or the quota is full, or it may not be written.
        """
        if self._is_written(trial, step, is_validation):
            return

        def fill(folder: Path, place: str | None) -> None:
            save(folder)
            faults.reached("checkpoint saved")
            newest = len(history) - 1
            reports = [_as_json(report, index == newest) for index, report in enumerate(history)]
            (folder / HISTORY).write_text(json.dumps(reports), encoding="utf-8")
            manifest = manifests.make(folder, trial, step, is_validation, place)
            self._quota.check(manifest.num_bytes)
            (folder / MANIFEST).write_bytes(manifests.as_bytes(manifest))
            self._quota.wrote(manifest.num_bytes)

        try:
            self._quota.check()
            self._shelf.put(trial, step, fill)
        except CheckpointError:
            raise
        except Exception as error:  # safetensors has errors of its own for a full disk
            if self._is_written(trial, step, is_validation):  # another writer was first
                return
            raise CheckpointError(
                f"cannot write the checkpoint {self._shelf.where(trial, step)}: {_reason(error)}. Free "
                f"space there or mend its permissions, then type `hpo resume`: the study goes on from "
                f"the checkpoint before."
            ) from error

    # Reading

    def newest(self, trial: int) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; torn ones are passed over, with a warning."""
        self._shelf.repair(trial)
        refused: list[tuple[int, str]] = []
        found = None
        for step in reversed(self.steps(trial)):
            try:
                found = self._load(trial, step)
                break
            except RefusedError as error:
                refused.append((step, str(error)))
        for step, reason in refused:
            self._warn(trial, step, reason, found)
        return found

    def warnings(self) -> list[str]:
        """Return what was warned of since the last call: a host's log is seen by nobody."""
        said, self._warnings = self._warnings, []
        return said

    def reports(self, trial: int, newest: Checkpoint) -> list[Report]:
        """Return a checkpoint's history, with what goes to the log as far as it is kept here.

        Each checkpoint has the step lines of its own validation; a killed driver may lack several.
        """
        found = {report.validation: report for report in newest.history}
        for step in self.steps(trial):
            if step > newest.step:
                continue
            checkpoint = newest if step == newest.step else self._peek(trial, step)
            if checkpoint is not None and checkpoint.history:
                own = checkpoint.history[-1]
                if found.get(own.validation) == replace(own, step_lines=(), samples=()):
                    found[own.validation] = own
        return list(found.values())

    def at_step(self, trial: int, step: int) -> Checkpoint:
        """Return one checkpoint.

        Raises:
            CheckpointError: It is missing or torn.
        """
        try:
            return self._load(trial, step)
        except RefusedError as error:
            raise CheckpointError(
                f"the checkpoint {self._shelf.where(trial, step)} is missing or torn: {error}."
            ) from None

    def steps(self, trial: int) -> list[int]:
        """Return the steps that a trial has a checkpoint of, rising; whole or not."""
        return self._shelf.steps(trial)

    def trials(self) -> list[int]:
        """Return the trials that have a folder here."""
        return self._shelf.trials()

    def listing(self) -> dict[int, list[int]]:
        """Return the trials that have a folder here with their steps; at a URL by one listing."""
        return self._shelf.listing()

    # Deleting

    def delete(self, trial: int, keep: Collection[int] = ()) -> None:
        """Delete a trial's checkpoints but those of some steps; its log stays."""
        self.remove(trial, set(self.steps(trial)).difference(keep))

    def remove(self, trial: int, steps: Collection[int]) -> None:
        """Delete checkpoints that are there.

        They are out of sight at once, and a crash leaves no torn one behind.
        """
        for step in sorted(steps):
            self._shelf.remove(trial, step)

    def finish_deleting(self) -> None:
        """Wait until the bytes of what was deleted are free."""
        self._shelf.finish_deleting()

    def sweep(self, trial: int, older_than_s: float) -> None:
        """Delete what killed writers left of a trial, if nothing was written there for so long."""
        self._shelf.sweep(trial, older_than_s)

    def clear(self) -> None:
        """Delete all of the study's files: checkpoints, logs, `best/`."""
        self._shelf.clear()

    # Logs

    def trial_folder(self, trial: int) -> Path:
        """Return the local folder of a trial's log, for its writer. At a URL: as the store has it."""
        if self._logs is not None:
            return self._logs.trial_folder(trial)
        return self.work / str(trial)

    def log_folder(self, trial: int) -> Path:
        """Return a folder with a trial's log, to be read: at a URL a copy."""
        if isinstance(self._shelf, LocalShelf):
            return self.work / str(trial)
        folder = self._shelf.scratch()
        for name in self._shelf.names(str(trial)):
            if "/" not in name:
                self._shelf.pull(f"{trial}/{name}", folder / name)
        return folder

    def work_folder(self) -> Path:
        """Return the local folder for trackers, with what they noted on other machines."""
        if self._logs is not None:
            self._logs.pull_shared()
        return self.work

    def push(self, trial: int) -> None:
        """Let a trial's log reach the store, soon; to be called when something was added to it."""
        if self._logs is not None:
            self._logs.push(trial)

    def flush(self) -> None:
        """Wait until the logs have reached the store, for half a minute at most."""
        if self._logs is not None:
            self._logs.flush()

    # Parts

    def _is_written(self, trial: int, step: int, is_validation: bool) -> bool:
        """Return whether a checkpoint is there, whole and good for as much as another would be."""
        there = self._peek(trial, step)
        if there is None or (is_validation and not there.is_validation):
            return False
        try:
            self._load(trial, step)
        except RefusedError:
            return False
        finally:
            self._shelf.drop(trial)
        return True

    def _load(self, trial: int, step: int) -> Checkpoint:
        manifest, history = self._shelf.peek(trial, step)
        found = _checkpoint(Path(), manifest, history)  # before anything is downloaded
        folder = self._shelf.get(trial, step, manifest)
        self._quota.expect(manifest.num_bytes)
        return replace(found, folder=folder)

    def _peek(self, trial: int, step: int) -> Checkpoint | None:
        try:
            return _checkpoint(Path(), *self._shelf.peek(trial, step))
        except RefusedError:
            return None

    def _warn(self, trial: int, step: int, reason: str, instead: Checkpoint | None) -> None:
        if (trial, step) in self._warned:
            return
        self._warned.add((trial, step))
        goes_on = "begins again" if instead is None else f"goes on from step {instead.step}"
        said = (
            f"the checkpoint {self._shelf.where(trial, step)} cannot be used: {reason}. "
            f"Trial {trial} {goes_on}."
        )
        self._warnings.append(said)
        log.warning("%s", said)


def _checkpoint(folder: Path, manifest: Manifest, history: bytes) -> Checkpoint:
    """Return what manifest and history say.

    Raises:
        RefusedError: The history is none.
    """
    reports = manifests.parse_json(history, HISTORY)
    try:
        return Checkpoint(
            folder, manifest.step, tuple(map(_from_json, reports)), manifest.is_validation
        )
    except (TypeError, ValueError, AttributeError, ValidationError):
        raise RefusedError(f"its {HISTORY} holds no reports") from None


def _reason(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) else None
    if said is None and f"os error {errno.ENOSPC}" in str(error).lower():  # of safetensors
        said = os.strerror(errno.ENOSPC)
    return said or str(error)


def _as_json(report: Report, is_newest: bool) -> dict[str, object]:
    """Return a report, without what the log has of it long since."""
    said = dict(vars(report))  # not asdict: it copies deeply, and a history has many
    return said if is_newest else {**said, "step_lines": (), "samples": ()}


def _from_json(report: Mapping[str, Any]) -> Report:
    listed = ("step_lines", "samples", "notes")  # a checkpoint of old has none of them
    found = Report(**{**report, **{name: tuple(report.get(name, ())) for name in listed}})
    _REPORT.validate_python(asdict(found), strict=False)
    return found
