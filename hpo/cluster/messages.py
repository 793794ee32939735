"""What passes between the driver and the hosts: plain values, no torch and no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainers.protocol import Report

SIGN_OF_LIFE_S = 30.0


@dataclass(frozen=True)
class HostSetup:
    """What a host is made of; the same for all hosts of a driver.

    Attributes:
        trainer: Name or dotted path.
        fixed: Options that all trials share.
        store: Folder or URL of the study's checkpoints.
        patience_s: A host that nobody has called for so long ends itself.
        import_path: Folders where the driver finds modules of the user's own.
        stall_timeout: A host whose trainer does not come back for so many seconds ends itself, and one
            that does not answer for so long is killed.
        disk_quota_gib: What the study's checkpoints may take.
        cpu_hosts: Hosts among which a node without a GPU divides its cores.
    """

    trainer: str
    fixed: Mapping[str, object]
    store: str
    patience_s: float
    import_path: tuple[str, ...] = ()
    stall_timeout: float = 1800.0
    disk_quota_gib: float | None = None
    cpu_hosts: int = 1

    @property
    def alive_s(self) -> float:
        """How often a host says of a trial that it is alive, if it has nothing else to say."""
        return min(SIGN_OF_LIFE_S, self.stall_timeout / 4, self.patience_s / 3)


@dataclass(frozen=True)
class Loss:
    """That a trial has lost its host.

    Attributes:
        cause: The same words for the same cause.
        is_counted: It was trained there; else it only waited, and has no part in it.
        host: Which one, the same for all that it held.
        has_loaded: The host had its model; else no trial has a part in it.
        output: The end of what the host's process wrote.
    """

    cause: str
    is_counted: bool
    host: str
    has_loaded: bool
    output: str = ""


@dataclass(frozen=True)
class Word:
    """What a host says of a trial; without anything else: it is alive.

    Attributes:
        report: A validation or an end.
        paused: It is saved and not trained any more; nothing of it is lost.
        reason: Why it is paused, if nobody asked for it: it had to make room for others.
        note: What the user should know; the trial goes on.
        fatal: No trial can be trained here: the model or the data is wrong, or the disk is full.
        gone: The host was told to drop it.
        loss: Its host is gone.
        step: Optimizer steps done, as far as the host has said.
        waiting: It is not trained yet: the model loads, or there is no room for it.
    """

    report: Report | None = None
    paused: bool = False
    reason: str | None = None
    note: str | None = None
    fatal: str | None = None
    gone: bool = False
    loss: Loss | None = None
    step: int = 0
    waiting: bool = False

    @property
    def is_news(self) -> bool:
        """Whether it says more than that the trial is alive."""
        said = (self.report, self.paused, self.note, self.fatal, self.gone, self.loss)
        return any(said)
