"""The database under a study: opened, tuned, versioned, and asked.

Only ``hpo.study`` and its parts use this. Tables of Optuna are Optuna's; ours are the schema's version
and the leases (``hpo.storage.leases``). What happens when it fails is in ``hpo.storage.database_faults``.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import filelock
import sqlalchemy as sa
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from hpo.errors import NoDatabaseError, StorageError, StudyError
from hpo.storage.database_faults import UNREADABLE, Patience, damaged, opens_later, storage_error
from hpo.storage.database_faults import shown as shown
from hpo.storage.database_faults import without_secrets as without_secrets

_T = TypeVar("_T")

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 5.0
"""One wait of SQLite for another program's write; ``Patience`` repeats it, and can tell the user."""

LOCK_TIMEOUT_S = 5.0
FROZEN_AFTER_S = 10.0
"""A driver that stands still in the midst of a write that long is cut off: others wait for its rows."""

FIRST_WITH_PLAN_MODES = 120000
"""PostgreSQL's version, as it gives it as a number."""

SERVER_OPTIONS: dict[str, Any] = {
    "connect_timeout": 10,
    "fallback_application_name": "hpo",
    # A server whose machine is gone sends no word: without these a driver would listen for hours.
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
METADATA = sa.MetaData()
SCHEMA = sa.Table("hpo_schema", METADATA, sa.Column("version", sa.Integer, primary_key=True))


class Lock(enum.IntEnum):
    """Our advisory locks on a PostgreSQL that others may use, too."""

    OPENING = 0x68706F00  # the tables are made
    PROPOSING = 0x68706F01  # the next trial is chosen
    INSERTING = 0x68706F02  # a trial is stored, or the whole study deleted
    BEST = 0x68706F03  # `best/` is written


@dataclass(frozen=True)
class Turn:
    """One driver's turn to do what one does at a time.

    Attributes:
        connection: Whose transaction holds the lock; None where there is but one driver.
    """

    connection: sa.Connection | None

    def lasts(self) -> bool:
        """Return whether it was this driver's turn until now: one that stood still loses it."""
        if self.connection is None:
            return True
        try:
            self.connection.execute(sa.select(1))
        except DBAPIError:
            return False
        return True


class Database:
    """A connection to the database, ready for use.

    Attributes:
        storage: Optuna's, with its tables made.
        engine: SQLAlchemy's, the same connections.
        is_sqlite: Embedded in a file: one driver at a time, held by a file lock.
    """

    storage: RDBStorage
    engine: sa.Engine

    def __init__(self, url: str, *, create: bool = True) -> None:
        """Open a database and make the tables it lacks.

        Args:
            url: As ``resolve_storage`` returns it.
            create: Make the file of a SQLite database that does not exist.

        Raises:
            StorageError: It cannot be reached or written, or a newer version wrote it.
            NoDatabaseError: There is no such file, and ``create`` is false.
        """
        self.url = url
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self._file: tuple[int, int] | None = None
        self._patience = Patience(shown(url))
        if self.is_sqlite and not create and not self._path.exists():
            raise NoDatabaseError(
                f"there is no database {shown(url)}. Go to the folder where the study was begun, or "
                f"name its database with --storage."
            )
        if self.is_sqlite:
            self._make_folder()
        try:
            self._patience(self._open, opens_later)
        except RuntimeError as error:  # Optuna: its tables are of another version
            raise StorageError(
                f"{shown(url)} was written by another version of Optuna: {error} Use the "
                f"environment that wrote it, or another database."
            ) from None
        except (OSError, ImportError) as error:
            raise storage_error(shown(url), error) from None
        except UNREADABLE as error:
            raise damaged(shown(url), error) from error
        if self.is_sqlite:
            self._file = _identity(self._path)

    @property
    def _path(self) -> Path:
        return Path(str(make_url(self.url).database))

    def _make_folder(self) -> None:
        folder = self._path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot make the folder {folder} for the database: {error}"
            ) from None

    def _open(self) -> None:
        self._tune_file()
        with self._opening():
            self.storage = RDBStorage(self.url, engine_kwargs=self._engine_options())
            self.engine = self.storage.engine
            tune = _tune_file_connection if self.is_sqlite else _tune_server_connection
            sa.event.listen(self.engine, "connect", tune)
            self.engine.dispose()  # the connections made so far were not tuned
            self._check_schema()

    def _tune_file(self) -> None:
        """Switch a SQLite file to WAL once; it stays so. Readers then never wait for the writer."""
        if not self.is_sqlite:
            return
        engine = sa.create_engine(self.url, connect_args={"timeout": BUSY_TIMEOUT_S})
        try:
            with engine.connect() as connection:
                connection.execute(sa.text("PRAGMA journal_mode=WAL"))
        finally:
            engine.dispose()

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        """Let one process at a time make the tables: PostgreSQL's own check for them can race."""
        if self.is_sqlite:
            yield
            return
        engine = sa.create_engine(self.url, connect_args=SERVER_OPTIONS, poolclass=sa.NullPool)
        with engine.begin() as connection:
            _set_timeouts(connection, 3 * FROZEN_AFTER_S, FROZEN_AFTER_S)
            _lock(connection, Lock.OPENING, 0)
            yield

    def _engine_options(self) -> dict[str, Any]:
        if self.is_sqlite:
            return {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
        # No ping before each act: a cut one is repeated. What the server has prepared is known to one
        # connection, so the newest is taken, and forgotten by psycopg with any transaction rolled back.
        return {"connect_args": SERVER_OPTIONS, "pool_use_lifo": True}

    def _check_schema(self) -> None:
        METADATA.create_all(self.engine)
        with self.engine.begin() as connection:
            version = connection.execute(sa.select(sa.func.max(SCHEMA.c.version))).scalar()
            if version is None:
                connection.execute(SCHEMA.insert().values(version=SCHEMA_VERSION))
            elif version > SCHEMA_VERSION:
                raise StorageError(
                    f"{shown(self.url)} was written by a newer hpo (schema {version}, this one knows "
                    f"{SCHEMA_VERSION}). Update hpo, or use another database."
                )

    # Asking

    def write(self, act: Callable[[sa.Connection], _T]) -> _T:
        """Do something in one transaction; again, and maybe twice, if a fault may pass.

        Raises:
            StorageError: The fault lasts.
        """

        def once() -> _T:
            with self.engine.begin() as connection:
                return act(connection)

        return self.guarded(once)

    def look(self, act: Callable[[sa.Connection], _T]) -> _T:
        """Read, as everything was at one moment.

        Raises:
            StorageError: It cannot be read.
        """

        def once() -> _T:
            with self.engine.connect() as connection:
                if self.is_sqlite:
                    connection.exec_driver_sql("BEGIN")
                else:
                    connection.execution_options(isolation_level="REPEATABLE READ")
                found = act(connection)
                connection.commit()  # not a rollback: see _engine_options
                return found

        return self.guarded(once)

    def ask(self, query: sa.Executable, parameters: Mapping[str, Any]) -> Sequence[sa.Row[Any]]:
        """Return the rows of one query: on a server one round trip, without a transaction's three.

        Raises:
            StorageError: It cannot be read.
        """

        def once() -> Sequence[sa.Row[Any]]:
            with self.engine.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                return connection.execute(query, parameters).all()

        return self.guarded(once)

    def guarded(self, action: Callable[[], _T]) -> _T:
        """Do something with the database, again while its fault may pass (busy, restarted, cut off).

        Raises:
            StorageError: The fault lasts.
        """
        self._check_file()
        return self._patience(action)

    def _check_file(self) -> None:
        """See that the open file is still the one of that name: others would not find what we write.

        Raises:
            StorageError: It is not.
        """
        if self._file is not None and _identity(self._path) != self._file:
            raise StorageError(
                f"the file {self._path} was removed or replaced by another while it was in use; what "
                f"the study did since then is not in it. Put the right file back, then type "
                f"`hpo resume`: it goes on from what that one says, and from the checkpoints."
            )

    # One at a time

    @contextlib.contextmanager
    def exclusive(
        self, lock: Lock, study_id: int, silence_s: float, meanwhile: Callable[[], object]
    ) -> Iterator[Turn]:
        """Let one driver at a time do something.

        SQLite needs nothing: its driver holds the file lock. On a server one that has stood still
        for ``silence_s`` loses its turn: nobody waits for a frozen driver for ever.

        Args:
            lock: What is to be done.
            study_id: Of which study.
            silence_s: How long the others wait for a driver that gives no sign of life.
            meanwhile: Called now and then while others have their turn.
        """
        if self.is_sqlite:
            yield Turn(None)
            return
        while (connection := self.guarded(lambda: self._held(lock, study_id, silence_s))) is None:
            meanwhile()
        try:
            yield Turn(connection)
        finally:
            with contextlib.suppress(SQLAlchemyError):  # a lost connection has lost its lock too
                connection.commit()  # not a rollback: see _engine_options
            connection.close()

    def _held(self, lock: Lock, study_id: int, silence_s: float) -> sa.Connection | None:
        """Return a connection whose transaction holds a lock, until it ends or its process does.

        None if others have kept the lock for a while.
        """
        connection = self.engine.connect()
        try:
            limits = "".join(
                f"SET LOCAL {n} = {ms};" for n, ms in _limits(silence_s / 4, silence_s)
            )
            taking = f"SELECT pg_advisory_xact_lock({int(lock)}, {int(study_id)})"
            connection.exec_driver_sql(limits + taking)  # one round trip
        except BaseException as error:
            with contextlib.suppress(DBAPIError):
                connection.rollback()
            connection.close()
            if getattr(getattr(error, "orig", None), "sqlstate", None) == "55P03":
                return None
            raise
        return connection

    def lock_in(self, connection: sa.Connection, lock: Lock, study_id: int) -> None:
        """Take a lock for the rest of a transaction; SQLite's writers are one at a time anyway."""
        if not self.is_sqlite:
            _lock(connection, lock, study_id)

    def driver_lock(self, study: str) -> filelock.FileLock | None:
        """Return the lock of a study's one driver on SQLite, taken; None on a server.

        The kernel drops it with the process, however that ends.

        Raises:
            StudyError: Another driver runs this study.
        """
        if not self.is_sqlite:
            return None
        path = f"{self._path}.{study}.lock"
        lock = filelock.FileLock(path, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise StudyError(
                f"the study {study!r} is being run by another process. Wait for it, or type "
                f"`hpo stop {study}`. For several drivers at once use PostgreSQL."
            ) from None
        except OSError as error:
            raise StorageError(
                f"cannot lock {path}: {error.strerror or error}. Make the folder writable for you."
            ) from None
        return lock

    def close(self) -> None:
        """Drop all connections."""
        self.storage.remove_session()
        self.engine.dispose()


def _lock(connection: sa.Connection, lock: Lock, study_id: int) -> None:
    taking = sa.text("SELECT pg_advisory_xact_lock(:lock, :study)")
    connection.execute(taking, {"lock": int(lock), "study": study_id})


def _set_timeouts(connection: sa.Connection, lock_s: float, silence_s: float) -> None:
    """Give a transaction its own limits: of a wait for a lock, and of standing still."""
    limits = _limits(lock_s, silence_s)
    connection.execute(sa.select(*(sa.func.set_config(name, str(ms), True) for name, ms in limits)))


def _limits(lock_s: float, silence_s: float) -> list[tuple[str, int]]:
    names = ("lock_timeout", "idle_in_transaction_session_timeout")
    return [(n, max(1, round(1000 * s))) for n, s in zip(names, (lock_s, silence_s), strict=True)]


def _tune_server_connection(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        for name, milliseconds in _limits(LOCK_TIMEOUT_S, FROZEN_AFTER_S):
            cursor.execute(f"SET {name} = {milliseconds}")
        if connection.info.server_version >= FIRST_WITH_PLAN_MODES:
            # Each of our statements looks rows up by their keys: there is nothing to plan anew.
            cursor.execute("SET plan_cache_mode = force_generic_plan")
    connection.commit()  # a rollback would take it back


def _tune_file_connection(connection: Any, _record: object) -> None:
    """Trade the fsync of each commit for WAL's: no commit is lost with the process, see SQLite."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute(f"PRAGMA busy_timeout={round(BUSY_TIMEOUT_S * 1000)}")
    cursor.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
