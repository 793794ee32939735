"""optuna-dashboard on a study's database.

It has no password and changes what it shows, so it answers this machine alone unless told otherwise, and
no page of another site that has taught a browser to call it by another name.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna_dashboard import wsgi

from hpo.errors import StorageError
from hpo.storage.database import Database

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        logging.getLogger(__name__).debug(format, *args)


class _ServerV6(WSGIServer):
    address_family = socket.AF_INET6


def serve(
    url: str,
    study_id: int | None,
    host: str,
    port: int,
    on_ready: Callable[[str], None],
    on_exposed: Callable[[str], None],
) -> None:
    """Serve the dashboard until Ctrl-C.

    Args:
        url: The database.
        study_id: The study to point at; None for the list.
        host: Address to listen on.
        port: 0 picks a free one.
        on_ready: Told the page's address once it answers.
        on_exposed: Told before, if others than this machine can reach it.

    Raises:
        StorageError: The database cannot be used, or the port is taken.
    """
    server = listen(url, host, port)
    if not _is_loopback(server):
        on_exposed(
            f"{host} is not this machine alone: whoever reaches port {server.server_port} can read and "
            f"change every study in the database, without a password."
        )
    page = "" if study_id is None else f"dashboard/studies/{study_id}"
    shown = f"[{host}]" if ":" in host else host
    on_ready(f"http://{shown}:{server.server_port}/{page}")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


def listen(url: str, host: str, port: int) -> WSGIServer:
    """Return the dashboard's server, listening; it answers once it is told to.

    Raises:
        StorageError: The database cannot be used, or the port is taken.
    """
    if not host.strip():  # to Python an empty address is every address
        raise StorageError("--host is empty. Give an address, as in 127.0.0.1; 0.0.0.0 is all.")
    application: Application = wsgi(Database(url).storage)
    kind = _ServerV6 if ":" in host else WSGIServer
    try:
        server = make_server(host, port, application, kind, handler_class=_Quiet)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"cannot listen on {host}:{port}: {reason}. Give another --port or --host."
        ) from None
    server.set_app(_guard(application, _is_loopback(server)))
    return server


def _is_loopback(server: WSGIServer) -> bool:
    return ipaddress.ip_address(str(server.server_address[0])).is_loopback


def _guard(application: Application, only_loopback: bool) -> Application:
    """Refuse requests that a page of another site makes through the user's browser.

    Such a page can point a name of its own at 127.0.0.1 (DNS rebinding), which the Host header
    shows; what changes studies it could send from its own name, which the Origin header shows.
    """

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host = str(environ.get("HTTP_HOST", ""))
        origin = environ.get("HTTP_ORIGIN")
        foreign = environ["REQUEST_METHOD"] not in _SAFE_METHODS and origin is not None
        if (only_loopback and not is_loopback_name(_name(f"//{host}"))) or (
            foreign and urlsplit(str(origin)).netloc != host
        ):
            start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{host!r} is not this machine's name: open http://127.0.0.1 instead.".encode()]
        return application(environ, start_response)

    return guarded


def is_loopback_name(name: str) -> bool:
    """Return whether a host's name or address can only mean this machine."""
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
