"""Leases: which driver owns which running trial, until when, by the database's own clock.

One row a trial. A claim is one conditional UPDATE, so two drivers never both win; every claim
raises the epoch, so a driver that was slow finds its epoch gone. Only ``hpo.study`` uses this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hpo.database import METADATA, Database
from hpo.errors import LeaseLostError

LEASES = sa.Table(
    "hpo_lease",
    METADATA,
    sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("expires_at", sa.Float(53), nullable=False),  # seconds since 1970, database's clock
)


@dataclass(frozen=True)
class Leases:
    """The lease table as one driver sees it.

    Attributes:
        database: Where it lies.
        owner: This driver's name, unique among all drivers ever.
        lease_s: How long a claim holds without a renewal.
    """

    database: Database
    owner: str
    lease_s: float

    @property
    def _now(self) -> sa.ColumnElement[float]:
        if self.database.is_sqlite:
            return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Float)
        return sa.literal_column("extract(epoch from clock_timestamp())", sa.Float)

    def claim(self, trial_id: int) -> int | None:
        """Claim a trial that nobody holds, or whose lease has run out.

        On SQLite this driver holds the study's file lock, so whoever else has a lease is dead.

        Returns:
            The epoch of the claim; None if another driver has it.
        """
        with self.database.engine.begin() as connection:
            free = sa.true() if self.database.is_sqlite else LEASES.c.expires_at < self._now
            updated = connection.execute(
                LEASES.update()
                .where(LEASES.c.trial_id == trial_id, free)
                .values(
                    owner=self.owner,
                    epoch=LEASES.c.epoch + 1,
                    expires_at=self._now + self.lease_s,
                )
                .returning(LEASES.c.epoch)
            ).scalar()
            if updated is not None:
                return int(updated)
            insert = sqlite.insert if self.database.is_sqlite else postgresql.insert
            inserted = connection.execute(
                insert(LEASES)
                .values(
                    trial_id=trial_id,
                    owner=self.owner,
                    epoch=1,
                    expires_at=self._now + self.lease_s,
                )
                .on_conflict_do_nothing()  # another driver holds it, or was first just now
                .returning(LEASES.c.epoch)
            ).scalar()
            return None if inserted is None else int(inserted)

    @contextlib.contextmanager
    def held(self, trial_id: int, epoch: int) -> Iterator[None]:
        """Renew a lease, and keep others from claiming the trial while the body writes it.

        Raises:
            LeaseLostError: Another driver has claimed it; nothing was written.
        """
        with self.database.engine.begin() as connection:
            if self._renew(connection, trial_id, epoch) == 0:
                raise LeaseLostError(
                    f"another driver has taken over this trial (its lease of {self.lease_s:g} s ran "
                    f"out); what this driver has of it is dropped."
                )
            if not self.database.is_sqlite:
                yield  # the row stays locked until the body has written
                return
        yield  # SQLite has one writer: Optuna's connection would wait for ours

    def renew(self, claims: Sequence[tuple[int, int]]) -> list[int]:
        """Renew many leases at once; return the trials of those that are lost."""
        lost = []
        with self.database.engine.begin() as connection:
            for trial_id, epoch in claims:
                if self._renew(connection, trial_id, epoch) == 0:
                    lost.append(trial_id)
        return lost

    def release(self, trial_id: int, epoch: int) -> None:
        """Let anyone claim the trial at once."""
        with self.database.engine.begin() as connection:
            connection.execute(
                LEASES.update()
                .where(
                    LEASES.c.trial_id == trial_id,
                    LEASES.c.owner == self.owner,
                    LEASES.c.epoch == epoch,
                )
                .values(expires_at=0.0)
            )

    def any_alive(self, trial_ids: Sequence[int]) -> bool:
        """Return whether any driver still breathes for one of these trials."""
        alive = sa.select(LEASES.c.trial_id).where(
            LEASES.c.trial_id.in_(trial_ids), LEASES.c.expires_at > self._now
        )
        with self.database.engine.connect() as connection:
            return connection.execute(alive.limit(1)).first() is not None

    def _renew(self, connection: sa.Connection, trial_id: int, epoch: int) -> int:
        result = connection.execute(
            LEASES.update()
            .where(
                LEASES.c.trial_id == trial_id,
                LEASES.c.owner == self.owner,
                LEASES.c.epoch == epoch,
            )
            .values(expires_at=self._now + self.lease_s)
        )
        return int(result.rowcount)
