"""How much a study may store: counted once, then added to, and counted again before a refusal.

Other processes write and delete, too, so what is added up here is only nearly right. A count is made
again when it is old for its cost, so that counting takes a fiftieth of the time at most.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from hpo.errors import CheckpointError
from hpo.store.address import shown
from hpo.store.local import LocalShelf, size_of
from hpo.store.remote import RemoteShelf

GIB = 1 << 30
RECOUNT_S = 60.0
SHARE_OF_TIME = 50
NUM_SUGGESTED = 3


class Quota:
    """Says before a checkpoint is written that there is no room for it."""

    def __init__(self, shelf: LocalShelf | RemoteShelf, limit_gib: float | None) -> None:
        self._shelf = shelf
        self._limit_gib = limit_gib
        self._used = 0
        self._count_again_at = 0.0
        self._last = 0

    def check(self, num_bytes: int | None = None) -> None:
        """Check that there is room for a checkpoint.

        Args:
            num_bytes: What it takes; None, if it is not known yet: as much as the last one.

        Raises:
            CheckpointError: There is none; with what may be deleted.
        """
        need = self._last if num_bytes is None else num_bytes
        if self._limit_gib is not None:
            limit = int(self._limit_gib * GIB)
            if time.monotonic() >= self._count_again_at:
                self._count()
            if self._used + need > limit:
                self._count()
            if self._used + need > limit:
                raise CheckpointError(self._refusal(need))
        self._check_disk(need if num_bytes is None else 0)

    def expect(self, num_bytes: int) -> None:
        """Take it that the next checkpoint takes as much."""
        self._last = num_bytes

    def wrote(self, num_bytes: int) -> None:
        """Add what was written."""
        self._used += num_bytes
        self._last = num_bytes

    def _count(self) -> None:
        started = time.monotonic()
        self._used = self._shelf.used_bytes()
        now = time.monotonic()
        self._count_again_at = now + max(RECOUNT_S, SHARE_OF_TIME * (now - started))

    def _check_disk(self, need: int) -> None:
        if not isinstance(self._shelf, LocalShelf):
            return
        folder = self._shelf.root
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if free < need:
            raise CheckpointError(
                f"the disk of {self._shelf.root} has {in_words(free)} left, and a checkpoint needs "
                f"{in_words(need)}. {self._advice()}"
            )

    def _refusal(self, need: int) -> str:
        where = self._shelf.root if isinstance(self._shelf, LocalShelf) else self._shelf.address
        return (
            f"{shown(where)} holds {in_words(self._used)}, and the next checkpoint of "
            f"{in_words(need)} would take it beyond 'disk_quota_gib: {self._limit_gib:g}'. "
            f"Raise that, or: {self._advice()}"
        )

    def _advice(self) -> str:
        ways = ["lower 'keep_checkpoints:'"]
        if isinstance(self._shelf, LocalShelf):
            for name, size in _beside(self._shelf.root):
                ways.append(f"`hpo delete {name}` ({in_words(size)})")
        ways.append("delete what you do not need there")
        return (
            f"Free space: {'; '.join(ways)}. Then type `hpo resume`: the study goes on from the "
            f"checkpoints before."
        )


def in_words(num_bytes: int) -> str:
    """Return a size for people."""
    for unit, size in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"


def _beside(folder: Path) -> list[tuple[str, int]]:
    """Return the largest other studies in the same output folder, by what they take."""
    sizes = []
    with contextlib.suppress(OSError):
        for name in os.listdir(folder.parent):
            other = folder.parent / name
            is_study = any(entry.isdecimal() for entry in _entries(other))
            if name != folder.name and is_study:
                sizes.append((name, size_of(other)))
    return sorted(sizes, key=lambda found: -found[1])[:NUM_SUGGESTED]


def _entries(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []
