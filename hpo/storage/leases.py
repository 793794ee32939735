"""Leases: which driver owns which running trial, and which drivers live, by the database's own clock.

One row a trial. A claim is one conditional UPDATE, so two drivers never both win; every claim
raises the epoch, so a driver that was slow finds its epoch gone. What is written under a lease is
written in the same transaction (``hpo.storage.rows``).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hpo.errors import LeaseLostError
from hpo.storage.database import METADATA, Database

LEASES = sa.Table(
    "hpo_lease",
    METADATA,
    sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("expires_at", sa.Float(53), nullable=False),  # seconds since 1970, database's clock
)
DRIVERS = sa.Table(
    "hpo_driver",
    METADATA,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("study_id", sa.Integer, nullable=False),
    sa.Column("expires_at", sa.Float(53), nullable=False),
)


def insert_into(database: Database, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """Return an insert that knows ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
    return sqlite.insert(table) if database.is_sqlite else postgresql.insert(table)


@dataclass(frozen=True)
class Leases:
    """The leases as one driver sees them. Each method is part of the caller's transaction.

    Attributes:
        database: Where they lie.
        owner: This driver's name, unique among all drivers ever.
        lease_s: How long a claim holds without a renewal.
    """

    database: Database
    owner: str
    lease_s: float

    @property
    def now(self) -> sa.ColumnElement[float]:
        """Seconds since 1970 by the database's clock."""
        if self.database.is_sqlite:
            return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Float)
        return sa.literal_column("extract(epoch from clock_timestamp())", sa.Float)

    @property
    def utc(self) -> sa.ColumnElement[datetime.datetime] | datetime.datetime:
        """The same moment as Optuna stores it: UTC, without saying so."""
        if self.database.is_sqlite:  # on this very machine
            return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        return sa.literal_column("timezone('utc', clock_timestamp())", sa.DateTime)

    def claim(self, connection: sa.Connection, trial_id: int) -> int | None:
        """Claim a trial that nobody holds, or whose lease has run out.

        On SQLite this driver holds the study's file lock, so whoever else has a lease is dead.

        Returns:
            The epoch of the claim; None if another driver has it.
        """
        ours = LEASES.c.owner == self.owner  # claimed by an act whose answer was lost
        free = sa.true() if self.database.is_sqlite else (LEASES.c.expires_at < self.now) | ours
        updated = connection.execute(
            LEASES.update()
            .where(LEASES.c.trial_id == trial_id, free)
            .values(owner=self.owner, epoch=LEASES.c.epoch + 1, expires_at=self._until)
            .returning(LEASES.c.epoch)
        ).scalar()
        if updated is not None:
            return int(updated)
        inserted = connection.execute(
            insert_into(self.database, LEASES)
            .values(trial_id=trial_id, owner=self.owner, epoch=1, expires_at=self._until)
            .on_conflict_do_nothing()  # another driver holds it, or was first just now
            .returning(LEASES.c.epoch)
        ).scalar()
        return None if inserted is None else int(inserted)

    def begin(self, connection: sa.Connection, trial_id: int) -> None:
        """Hold a trial that this very transaction makes, under epoch 1."""
        connection.execute(self._first, {"trial_id": trial_id})

    def hold(self, connection: sa.Connection, trial_id: int, epoch: int) -> None:
        """Renew a lease; nobody can claim the trial before the transaction ends.

        Raises:
            LeaseLostError: Another driver has claimed it.
        """
        if not self._set(connection, self._renewal, trial_id, epoch):
            raise self.lost()

    def held(self) -> sa.CTE:
        """Return ``hold`` as part of a statement: its row, with ``trial_id``, is missing if it is lost.

        Its parameters are ``held_id`` and ``held_epoch``. Not for SQLite.
        """
        return self._renewal.returning(LEASES.c.trial_id).cte("held")

    def lost(self) -> LeaseLostError:
        """Return what to raise when another driver has claimed a trial."""
        return LeaseLostError(
            f"another driver has taken over this trial (its lease of {self.lease_s:g} s ran "
            f"out); what this driver has of it is dropped."
        )

    def free(self, connection: sa.Connection, trial_ids: Sequence[int]) -> list[int]:
        """Return those of some trials that nobody else holds now, in their order."""
        held = sa.select(LEASES.c.trial_id).where(
            LEASES.c.trial_id.in_(trial_ids),
            LEASES.c.expires_at >= self.now,
            LEASES.c.owner != self.owner,
        )
        taken = set(connection.execute(held).scalars())
        return [trial_id for trial_id in trial_ids if trial_id not in taken]

    def let_go(self, connection: sa.Connection, trial_id: int, epoch: int) -> None:
        """Let anyone claim the trial at once."""
        self._set(connection, self._setting(sa.literal(0.0)), trial_id, epoch)

    def renew(self, connection: sa.Connection, claims: Sequence[tuple[int, int]]) -> list[int]:
        """Renew many leases, (trial id, epoch) each; return the trials of those that are lost."""
        ordered = sorted(claims)  # two drivers that lock rows in one order never wait in a ring
        return [
            trial_id
            for trial_id, epoch in ordered
            if not self._set(connection, self._renewal, trial_id, epoch)
        ]

    def breathe(self, connection: sa.Connection, study_id: int) -> None:
        """Say that this driver lives, and forget those that have long been dead."""
        connection.execute(
            insert_into(self.database, DRIVERS)
            .values(owner=self.owner, study_id=study_id, expires_at=self._until)
            .on_conflict_do_update(
                index_elements=[DRIVERS.c.owner], set_={"expires_at": self._until}
            )
        )
        long_ago = self.now - 100 * self.lease_s
        connection.execute(
            DRIVERS.delete().where(DRIVERS.c.study_id == study_id, DRIVERS.c.expires_at < long_ago)
        )

    def leave(self, connection: sa.Connection) -> None:
        """Say that this driver has left."""
        connection.execute(DRIVERS.delete().where(DRIVERS.c.owner == self.owner))

    def any_driver(self, connection: sa.Connection, study_id: int) -> bool:
        """Return whether any driver of a study still breathes."""
        alive = sa.select(DRIVERS.c.owner).where(
            DRIVERS.c.study_id == study_id, DRIVERS.c.expires_at > self.now
        )
        return connection.execute(alive.limit(1)).first() is not None

    @property
    def _until(self) -> sa.ColumnElement[float]:
        return self.now + self.lease_s

    @cached_property
    def _renewal(self) -> sa.Update:
        """Gives an own lease another lease's length. Made once: it is part of nearly every write."""
        return self._setting(self._until)

    @cached_property
    def _first(self) -> sa.Insert:
        values = {"owner": self.owner, "epoch": 1, "expires_at": self._until}
        return LEASES.insert().values(trial_id=sa.bindparam("trial_id"), **values)

    def _setting(self, expires_at: sa.ColumnElement[float]) -> sa.Update:
        return (
            LEASES.update()
            .where(
                LEASES.c.trial_id == sa.bindparam("held_id"),
                LEASES.c.owner == self.owner,
                LEASES.c.epoch == sa.bindparam("held_epoch"),
            )
            .values(expires_at=expires_at)
        )

    @staticmethod
    def _set(connection: sa.Connection, setting: sa.Update, trial_id: int, epoch: int) -> bool:
        """Give an own lease another end; return whether it is still this driver's."""
        held = {"held_id": trial_id, "held_epoch": epoch}
        return bool(connection.execute(setting, held).rowcount)
