"""A database's faults: which may pass and are waited for, and what a user is told of the others.

Knows no table and no connection; ``hpo.storage.database`` passes every act through ``Patience``.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_exponential_jitter,
)

from hpo.errors import StorageError

_T = TypeVar("_T")

log = logging.getLogger(__name__)

RETRY_FOR_S = 60.0
TELL_AFTER_S = 3.0

# What comes again however often it is tried, by SQLite's primary code or PostgreSQL's SQLSTATE.
FULL = (sqlite3.SQLITE_FULL, "53100")
READ_ONLY = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, "25006")
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, "XX001", "XX002")
DISK = (sqlite3.SQLITE_IOERR, "58030")
CLOSED = (sqlite3.SQLITE_CANTOPEN,)
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)

UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RecursionError,
)
"""What libraries raise over rows that are none of theirs."""

_SAFE = "what was stored is safe, and `hpo resume` goes on from it."
ADVICE: tuple[tuple[tuple[int | str, ...], str], ...] = (
    (FULL, f"Free space on its disk; {_SAFE}"),
    (READ_ONLY, f"Make its file, its folder and its disk writable for you; {_SAFE}"),
    (
        DAMAGED,
        "It is damaged: put a backup of it back, without a -wal or -shm file beside it, or begin a "
        "new study in another database.",
    ),
    (DISK, f"Its disk fails: see the system's log, and whether the disk is full; {_SAFE}"),
    (CLOSED, f"Check that its folder exists and that you may read and write there; {_SAFE}"),
    (BUSY, f"Another program keeps it locked: end that one; {_SAFE}"),
)
"""What to do, by what is wrong."""

_NEVER = ("authentication failed", "does not exist", "no password supplied", "no pg_hba.conf")
_SOON = (
    "closed the connection",
    "starting up",
    "shutting down",
    "recovery",
    "too many clients",
    "connection slots",
)


def shown(url: str) -> str:
    """Return a URL as it may be printed, logged or stored: without its password."""
    try:  # a query may hold a password too
        return make_url(url).set(query={}).render_as_string(hide_password=True)
    except (sa.exc.ArgumentError, ValueError):
        return "the database"


def without_secrets(text: str) -> str:
    """Return a text of a library with the passwords of any URL in it struck out."""
    text = re.sub(r"(\w[\w+.-]*://[^\s:/@]*):\S+@", r"\1:***@", text)
    secret = r"""('(?:\\.|[^'\\])*'|"[^"]*"|[^\s&]+)"""
    return re.sub(rf"(password\s*=\s*){secret}", r"\1***", text, flags=re.IGNORECASE)


def storage_error(name: str, error: BaseException) -> StorageError:
    """Return what a user is told of a database's error, without passwords.

    Args:
        name: The database's, as it may be shown.
        error: Of SQLAlchemy, or of the disk.
    """
    code = _code(error)
    advice = next(
        (advice for codes, advice in ADVICE if code in codes),
        f"Check that it runs and may be written; {_SAFE}",
    )
    return StorageError(f"the database {name} cannot be used: {_reason(error)}. {advice}")


def damaged(name: str, error: BaseException) -> StorageError:
    """Return what a user is told of a database that opens but cannot be understood."""
    reason = without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    return StorageError(
        f"the database {name} is damaged, or something else than hpo has written to it ({reason}). "
        f"Restore it from a backup, or begin anew in another one with --storage."
    )


def may_pass(error: BaseException) -> bool:
    """Return whether a fault may be gone at the next try: busy, restarted, cut off, out of turn."""
    fault = _cause(error)
    if not isinstance(fault, DBAPIError):
        return False
    if fault.connection_invalidated:
        return True
    if not isinstance(fault, sa.exc.OperationalError | sa.exc.InterfaceError):
        return False
    code = _code(fault)
    if isinstance(code, int):
        return code in BUSY
    if isinstance(fault.orig, sqlite3.Error):
        return False  # without a code of SQLite's: what is stored cannot be decoded
    if code is None:  # it could not even connect
        return not any(word in str(fault.orig) for word in _NEVER)
    return code[:2] in {"08", "40", "53", "55", "57"} and code not in FULL


def opens_later(error: BaseException) -> bool:
    """Return whether a database that cannot be opened is only busy; a wrong address is not waited for."""
    fault = _cause(error)
    if not isinstance(fault, DBAPIError):
        return False
    if fault.connection_invalidated:  # it was reached, and cut off
        return True
    code = _code(fault)
    return code in BUSY or code == "55P03" or any(word in str(fault.orig) for word in _SOON)


class _MayPassError(Exception):
    """An action has met a fault that may be gone at the next try."""


class Patience:
    """Does things with a database, again while their fault may pass, and says so if that takes long.

    One that has given up tries once at each further act, until one goes well: a driver that leaves
    because its database is gone does not wait for it at every step of its leaving.
    """

    def __init__(self, name: str) -> None:
        """Be patient with the database of this name, as it may be shown."""
        self._name = name
        self._gave_up = False

    def __call__(
        self, action: Callable[[], _T], passes: Callable[[BaseException], bool] = may_pass
    ) -> _T:
        """Return what an action returns.

        Args:
            action: May be repeated, also when it has done its work.
            passes: Whether a fault may pass.

        Raises:
            StorageError: The fault lasts.
        """
        if not self._gave_up:
            with contextlib.suppress(_MayPassError):
                return self._once(action, passes)
        return self._again(action, passes)

    def _once(self, action: Callable[[], _T], passes: Callable[[BaseException], bool]) -> _T:
        """Return what an action returns; nearly every one goes well, and costs nothing more."""
        try:
            return action()
        except (SQLAlchemyError, StorageInternalError) as error:
            if passes(error):
                raise _MayPassError from None
            raise storage_error(self._name, _cause(error)) from None

    def _again(self, action: Callable[[], _T], passes: Callable[[BaseException], bool]) -> _T:
        told = False

        def tell(state: RetryCallState) -> None:
            nonlocal told
            fault = state.outcome.exception() if state.outcome else None
            if told or fault is None or (state.seconds_since_start or 0.0) < TELL_AFTER_S:
                return
            told = True
            log.warning(
                "the database %s does not answer (%s); trying again for up to %g s",
                self._name,
                _reason(_cause(fault)),
                RETRY_FOR_S,
            )

        retrying = Retrying(
            retry=retry_if_exception(passes),
            wait=wait_exponential_jitter(multiplier=0.1, max=5, jitter=0.3),
            stop=stop_after_delay(0.0 if self._gave_up else RETRY_FOR_S),
            before_sleep=tell,
            reraise=True,
        )
        try:
            result = retrying(action)
        except (SQLAlchemyError, StorageInternalError) as error:
            self._gave_up = self._gave_up or passes(error)
            raise storage_error(self._name, _cause(error)) from None
        if told:
            log.warning("the database %s answers again", self._name)
        self._gave_up = False
        return result


def _cause(error: BaseException) -> BaseException:
    """Return what SQLAlchemy raised, which Optuna wraps."""
    return (error.__cause__ or error) if isinstance(error, StorageInternalError) else error


def _reason(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return " ".join(without_secrets(str(cause)).split()).rstrip(".")


def _code(error: BaseException) -> int | str | None:
    """Return SQLite's primary result code, or PostgreSQL's SQLSTATE, if there is one."""
    cause = getattr(error, "orig", None) or error
    code = getattr(cause, "sqlite_errorcode", None)
    if code is not None:
        return int(code) & 0xFF  # the rest says more of it
    state = getattr(cause, "sqlstate", None)
    return None if state is None else str(state)
