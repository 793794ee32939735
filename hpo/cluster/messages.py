"""What passes between the driver, the proxies and the hosts: plain values, no torch and no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainers.protocol import Report


@dataclass(frozen=True)
class HostSetup:
    """What a host is made of; the same for all hosts of a driver.

    Attributes:
        trainer: Name or dotted path.
        fixed: Options that all trials share.
        store: Folder or URL of the study's checkpoints.
        patience_s: A host that nobody has called for so long ends itself.
        import_path: Folders where the driver finds modules of the user's own.
        disk_quota_gib: What the study's checkpoints may take.
    """

    trainer: str
    fixed: Mapping[str, object]
    store: str
    patience_s: float
    import_path: tuple[str, ...] = ()
    disk_quota_gib: float | None = None


@dataclass(frozen=True)
class Word:
    """What a host says of one trial: a report, that it is paused, or why it cannot train at all.

    Attributes:
        report: A validation or an end.
        paused: It is saved and not trained any more; nothing of it is lost.
        reason: Why it is paused, if nobody asked for it: it had to make room for others.
        note: What the user should know; the trial goes on.
        fatal: No trial can be trained here: the model or the data is wrong, or the disk is full.
    """

    report: Report | None = None
    paused: bool = False
    reason: str | None = None
    note: str | None = None
    fatal: str | None = None
