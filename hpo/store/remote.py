"""Checkpoints at a URL: files first, the manifest last. A checkpoint is there when its manifest is.

``ROOT/TRIAL/STEP/manifest.json`` names the folder beside it, ``ROOT/TRIAL/STEP/ID/``, that holds the
files: a newer one of the same step lies in a folder of its own, and takes the place in one write.
The manifest goes first when one is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from hpo import faults
from hpo.store import manifest as manifests
from hpo.store.address import child, make_parents, open_filesystem, reaching, shown
from hpo.store.manifest import HISTORY, MANIFEST, Manifest, RefusedError
from hpo.store.scratch import Scratch, cache_folder

_T = TypeVar("_T")

RETRY_FOR_S = 30
_CHUNK_BYTES = 8 << 20
_LASTING = ("no_such_bucket", "nosuchbucket", "access_denied", "forbidden", "invalid_access_key")


class RemoteShelf:
    """Puts, gets and removes checkpoints at an address."""

    is_local = False

    def __init__(self, address: str) -> None:
        self.address = address
        self._filesystem, self._path = open_filesystem(address)
        digest = hashlib.blake2b(address.encode(), digest_size=6).hexdigest()
        self.work = cache_folder() / "stores" / f"{self._path.rpartition('/')[2]}-{digest}"
        self._scratch = Scratch()

    def where(self, trial: int, step: int) -> str:
        """Return a checkpoint's place, for people."""
        return shown(child(self.address, str(trial), str(step)))

    def trials(self) -> list[int]:
        """Return the trials that have a folder here."""
        names = {info.base_name for info in self._list("", recursive=False)}
        return sorted(int(name) for name in names if name.isdecimal())

    def steps(self, trial: int) -> list[int]:
        """Return the steps of a trial's checkpoints, whole or not."""
        return self._steps(self._list(f"/{trial}")).get(trial, [])

    def listing(self) -> dict[int, list[int]]:
        """Return the steps of every trial's checkpoints, in one listing."""
        return self._steps(self._list(""))

    def _steps(self, infos: Iterator[Any]) -> dict[int, list[int]]:
        found: defaultdict[int, list[int]] = defaultdict(list)
        for info in infos:
            trial, *rest = self._parts(info.path)
            if trial.isdecimal():
                steps = found[int(trial)]
                if len(rest) == 2 and rest[0].isdecimal() and rest[1] == MANIFEST:
                    steps.append(int(rest[0]))
        return {trial: sorted(steps) for trial, steps in sorted(found.items())}

    def put(self, trial: int, step: int, fill: Callable[[Path, str | None], None]) -> None:
        """Put a checkpoint in its place: its manifest's upload is what makes it be there.

        Args:
            trial: Number.
            step: Optimizer steps done.
            fill: Writes all of its files, the manifest too, into an empty folder, given the name that
                the folder will have.
        """
        place = uuid.uuid4().hex[:8]
        folder = self._scratch.folder()
        at = f"{self._path}/{trial}/{step}"
        try:
            fill(folder, place)
            with reaching(self.address):
                for name in manifests.files_in(folder):
                    self._upload(folder / name, f"{at}/{place}/{name}")
                faults.reached("checkpoint listed")
                older = self._place_of(trial, step)
                self._upload(folder / MANIFEST, f"{at}/{MANIFEST}")
                if older is not None:
                    faults.reached("checkpoint moved")
                    self._delete_folder(f"{at}/{older}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._scratch.drop(trial)
        faults.reached("checkpoint renamed")

    def peek(self, trial: int, step: int) -> tuple[Manifest, bytes]:
        """Return a checkpoint's manifest and history; the rest is not looked at.

        Raises:
            RefusedError: It is not whole, as far as that shows.
        """
        content = self._read(f"{trial}/{step}/{MANIFEST}", manifests.MAX_BYTES)
        found = manifests.parse(content, trial, step)
        listed = found.files[HISTORY]
        history = self._read(self._name(found, HISTORY), listed.bytes)
        digest = hashlib.blake2b(history, digest_size=16).hexdigest()
        if len(history) != listed.bytes or digest != listed.blake2b:
            raise RefusedError(f"its {HISTORY} has other bytes than were written")
        return found, history

    def get(self, trial: int, step: int, found: Manifest) -> Path:
        """Download a checkpoint, and return the local folder when its bytes are verified.

        Raises:
            RefusedError: They are not those that were written.
        """
        folder = self._scratch.folder()
        try:
            for name, listed in found.files.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                self._download(self._name(found, name), target, listed.bytes)
            manifests.verify(folder, found, deeply=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._scratch.keep(trial, folder)
        return folder

    def repair(self, trial: int) -> None:
        """A checkpoint takes another's place in one write: there is nothing to repair."""

    def remove(self, trial: int, step: int) -> None:
        """Delete a checkpoint, its manifest first."""
        at = f"{self._path}/{trial}/{step}"
        self._scratch.drop(trial)
        with reaching(self.address):
            faults.reached("deleting")
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.delete_file(f"{at}/{MANIFEST}")
            faults.reached("deleted")
            self._delete_folder(at)

    def finish_deleting(self) -> None:
        """Nothing is left to wait for."""

    def sweep(self, trial: int, older_than_s: float) -> None:
        """Delete what killed writers left of a trial, if nothing was written there for so long.

        That are the folders that no manifest names.
        """
        newest: defaultdict[tuple[str, str], float] = defaultdict(float)
        manifests_of: set[str] = set()
        for info in self._list(f"/{trial}"):
            parts = self._parts(info.path)
            if len(parts) == 3 and parts[2] == MANIFEST:
                manifests_of.add(parts[1])
            elif len(parts) > 3 and parts[1].isdecimal():
                key = (parts[1], parts[2])
                written = info.mtime.timestamp() if info.mtime else time.time()
                newest[key] = max(newest[key], written)
        # Only where it may matter is a manifest read: most checkpoints have one folder.
        several = {step for step in manifests_of if sum(of == step for of, _ in newest) > 1}
        named: set[tuple[str, str | None]] = {key for key in newest if key[0] in manifests_of}
        named = {key for key in named if key[0] not in several}
        named |= {(step, self._place_of(trial, int(step))) for step in several}
        for (step, place), written in newest.items():
            if (step, place) not in named and time.time() - written >= older_than_s:
                with reaching(self.address):
                    self._delete_folder(f"{self._path}/{trial}/{step}/{place}")

    def clear(self) -> None:
        """Delete all that the study has stored, and what lies here of it."""
        with reaching(self.address):
            self._delete_folder(self._path)
        shutil.rmtree(self.work, ignore_errors=True)

    def drop(self, trial: int) -> None:
        """Remove what was downloaded of a trial."""
        self._scratch.drop(trial)

    def used_bytes(self) -> int:
        """Return what the study has stored here."""
        return sum(info.size or 0 for info in self._list("") if info.is_file)

    # Files beside the checkpoints: logs, and the best adapter

    def names(self, under: str) -> list[str]:
        """Return the files under a folder, relative to it."""
        start = f"{self._path}/{under}/"
        return [self._plain(i.path)[len(start) :] for i in self._list(f"/{under}") if i.is_file]

    def push(self, source: Path, name: str) -> None:
        """Upload one file."""
        with reaching(self.address):
            self._upload(source, f"{self._path}/{name}")

    def pull(self, name: str, target: Path) -> bool:
        """Download one file; return False if there is none."""
        fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._download(name, fresh, None)
            fresh.replace(target)
        except RefusedError:
            return False
        finally:
            fresh.unlink(missing_ok=True)
        return True

    def delete(self, name: str) -> None:
        """Delete one file, if it is there."""
        with reaching(self.address), contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._path}/{name}")

    def scratch(self) -> Path:
        """Return a new local folder that goes with this process."""
        return self._scratch.folder()

    # Requests

    def _place_of(self, trial: int, step: int) -> str | None:
        """Return the folder that a checkpoint's files lie in, if its manifest says so."""
        with contextlib.suppress(RefusedError):
            content = self._read(f"{trial}/{step}/{MANIFEST}", manifests.MAX_BYTES)
            return manifests.parse(content, trial, step).folder
        return None

    def _name(self, found: Manifest, name: str) -> str:
        at = f"{found.trial}/{found.step}"
        return f"{at}/{name}" if found.folder is None else f"{at}/{found.folder}/{name}"

    def _plain(self, path: str) -> str:
        """Return a listed path as the root begins: some file systems drop or add the first slash."""
        return "/" * self._path.startswith("/") + path.lstrip("/")

    def _parts(self, path: str) -> list[str]:
        return self._plain(path)[len(self._path) + 1 :].split("/")

    def _list(self, under: str, *, recursive: bool = True) -> Iterator[Any]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._path + under, allow_not_found=True, recursive=recursive)
        with reaching(self.address):
            found = _retried(lambda: self._filesystem.get_file_info(selector))
        return iter(found)

    def _upload(self, source: Path, name: str) -> None:
        def upload() -> None:
            make_parents(self._filesystem, name)
            with source.open("rb") as file, self._filesystem.open_output_stream(name) as target:
                shutil.copyfileobj(file, target, _CHUNK_BYTES)

        _retried(upload)

    def _download(self, name: str, target: Path, num_bytes: int | None) -> None:
        """Download a file, and no more of it than there should be."""

        def download() -> None:
            with (
                self._filesystem.open_input_stream(f"{self._path}/{name}") as source,
                target.open("wb") as file,
            ):
                left = -1 if num_bytes is None else num_bytes + 1
                while left and (chunk := source.read(_CHUNK_BYTES)):
                    file.write(chunk)
                    left = max(0, left - len(chunk)) if left > 0 else left

        with reaching(self.address):
            try:
                _retried(download)
            except FileNotFoundError:
                raise RefusedError(f"{name} is missing") from None

    def _read(self, name: str, max_bytes: int) -> bytes:
        def read() -> bytes:
            with self._filesystem.open_input_stream(f"{self._path}/{name}") as source:
                return bytes(source.read(max_bytes + 1))

        with reaching(self.address):
            try:
                return _retried(read)
            except FileNotFoundError:
                raise RefusedError(f"its {name.rpartition('/')[2]} is missing") from None

    def _delete_folder(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            _retried(lambda: self._filesystem.delete_dir(path))


def _retried(action: Callable[[], _T]) -> _T:
    """Do something, again while the network's fault may pass."""
    retrying = Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_exponential_jitter(multiplier=0.2, max=5),
        stop=stop_after_delay(RETRY_FOR_S),
        reraise=True,
    )
    return retrying(action)


def _may_pass(error: BaseException) -> bool:
    if not isinstance(error, OSError) or isinstance(
        error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError
    ):
        return False
    text = str(error).lower()
    return error.errno is None and not any(word in text for word in _LASTING)
