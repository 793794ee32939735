"""The database under a study: opened, tuned, versioned, and shown without its password.

Only ``hpo.study`` uses this. Tables of Optuna are Optuna's; ours are the schema's version and the
leases (``hpo.leases``).
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import filelock
import sqlalchemy as sa
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from hpo.errors import NoDatabaseError, StorageError, StudyError

_T = TypeVar("_T")

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 30
RETRY_FOR_S = 60
METADATA = sa.MetaData()
SCHEMA = sa.Table("hpo_schema", METADATA, sa.Column("version", sa.Integer, primary_key=True))


def shown(url: str) -> str:
    """Return a URL as it may be printed, logged or stored: without its password."""
    try:  # a query may hold a password too
        return make_url(url).set(query={}).render_as_string(hide_password=True)
    except (sa.exc.ArgumentError, ValueError):
        return "the database"


def without_secrets(text: str) -> str:
    """Return a text of a library with the passwords of any URL in it struck out."""
    text = re.sub(r"(\w[\w+.-]*://[^\s:/@]*):\S+@", r"\1:***@", text)
    return re.sub(r"(password\s*=\s*)[^\s&]+", r"\1***", text, flags=re.IGNORECASE)


class Database:
    """A connection to the database, ready for use.

    Attributes:
        storage: Optuna's, with its tables made.
        engine: SQLAlchemy's, the same connections.
        is_sqlite: Embedded in a file: one driver at a time, held by a file lock.
    """

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
        if self.is_sqlite and not create and not Path(str(make_url(url).database)).exists():
            raise NoDatabaseError(
                f"there is no database {shown(url)}. Go to the folder where the study was begun, or "
                f"name its database with --storage."
            )
        if self.is_sqlite:
            self._make_folder()
        try:
            self._tune_file()
            self.storage = RDBStorage(url, engine_kwargs=self._engine_options())
            self.engine: sa.Engine = self.storage.engine
            if self.is_sqlite:
                sa.event.listen(self.engine, "connect", _tune_connection)
                self.engine.dispose()  # the connections made so far were not tuned
            self._check_schema()
        except RuntimeError as error:  # Optuna: its tables are of another version
            raise StorageError(
                f"{shown(url)} was written by another version of Optuna: {error} Use the "
                f"environment that wrote it, or another database."
            ) from None
        except (SQLAlchemyError, OSError, ImportError) as error:
            raise storage_error(url, error) from None
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
            raise damaged(url, error) from error

    def _make_folder(self) -> None:
        folder = Path(str(make_url(self.url).database)).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot make the folder {folder} for the database: {error}"
            ) from None

    def _tune_file(self) -> None:
        """Switch a SQLite file to WAL once; it stays so. Readers then never wait for the writer."""
        if not self.is_sqlite:
            return
        engine = sa.create_engine(self.url, connect_args={"timeout": BUSY_TIMEOUT_S})
        with engine.connect() as connection:
            connection.execute(sa.text("PRAGMA journal_mode=WAL"))
        engine.dispose()

    def _engine_options(self) -> dict[str, Any]:
        if self.is_sqlite:
            return {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
        return {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}

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

    @contextlib.contextmanager
    def exclusive(self, study_id: int) -> Iterator[None]:
        """Let one driver at a time decide what the next trial is.

        SQLite needs nothing: its driver holds the file lock.
        """
        if self.is_sqlite:
            yield
            return
        connection = guarded(self.url, lambda: self._advisory_lock(study_id))
        try:
            yield
        finally:
            with contextlib.suppress(SQLAlchemyError):  # a lost connection has lost its lock too
                connection.close()

    def _advisory_lock(self, key: int) -> sa.Connection:
        """Return a connection whose transaction holds the lock; it ends with either, or a crash."""
        connection = self.engine.connect()
        try:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        except BaseException:
            connection.close()
            raise
        return connection

    def driver_lock(self, study: str) -> filelock.FileLock | None:
        """Return the lock of a study's one driver on SQLite, taken; None on a server.

        The kernel drops it with the process, however that ends.

        Raises:
            StudyError: Another driver runs this study.
        """
        if not self.is_sqlite:
            return None
        path = f"{make_url(self.url).database}.{study}.lock"
        lock = filelock.FileLock(path, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise StudyError(
                f"the study {study!r} is being run by another process. Wait for it, or type "
                f"`hpo stop {study}`. For several drivers at once use PostgreSQL."
            ) from None
        except OSError as error:
            raise StorageError(f"cannot lock {path}: {error}") from None
        return lock

    def close(self) -> None:
        """Drop all connections."""
        self.storage.remove_session()
        self.engine.dispose()


def storage_error(url: str, error: BaseException) -> StorageError:
    """Return what a user is told of a database's error, without passwords."""
    cause = getattr(error, "orig", None) or error
    reason = " ".join(without_secrets(str(cause)).split())
    return StorageError(
        f"the database {shown(url)} cannot be used: {reason}. Check that it runs and may be written; "
        f"what was stored is safe, and `hpo resume` goes on from it."
    )


def damaged(url: str, error: BaseException) -> StorageError:
    """Return what a user is told of a database that opens but cannot be understood."""
    reason = without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    return StorageError(
        f"the database {shown(url)} is damaged, or something else than hpo has written to it "
        f"({reason}). Restore it from a backup, or begin anew in another one with --storage."
    )


def guarded(url: str, action: Callable[[], _T]) -> _T:
    """Do something with the database, again while its fault may pass (busy, restarted, cut off).

    Raises:
        StorageError: The fault lasts.
    """
    retrying = Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_exponential_jitter(multiplier=0.1, max=5),
        stop=stop_after_delay(RETRY_FOR_S),
        reraise=True,
    )
    try:
        return retrying(action)
    except SQLAlchemyError as error:
        raise storage_error(url, error) from None
    except Exception as error:
        if isinstance(error.__cause__, SQLAlchemyError):  # Optuna wraps what SQLAlchemy raises
            raise storage_error(url, error.__cause__) from None
        raise


def _may_pass(error: BaseException) -> bool:
    fault = error.__cause__ or error  # Optuna wraps what SQLAlchemy raises
    if not isinstance(fault, sa.exc.OperationalError | sa.exc.InterfaceError):
        return False
    if isinstance(fault.orig, sqlite3.Error):  # its others are of a file that is not going to mend
        return any(word in str(fault.orig) for word in ("locked", "busy"))
    return not any(word in str(fault).lower() for word in ("readonly", "read-only", "disk", "full"))


def _tune_connection(connection: Any, _record: object) -> None:
    """Trade the fsync of each commit for WAL's: no commit is lost with the process, see SQLite."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")
    cursor.close()
