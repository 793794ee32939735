"""optuna-dashboard on a study's database."""

from __future__ import annotations

import logging
from collections.abc import Callable
from wsgiref.simple_server import WSGIRequestHandler, make_server

from optuna_dashboard import wsgi

from hpo.database import Database
from hpo.errors import StorageError


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        logging.getLogger(__name__).debug(format, *args)


def serve(
    url: str, study_id: int | None, host: str, port: int, on_ready: Callable[[str], None]
) -> None:
    """Serve the dashboard until Ctrl-C.

    Args:
        url: The database.
        study_id: The study to point at; None for the list.
        host: Address to listen on.
        port: 0 picks a free one.
        on_ready: Told the page's address once it answers.

    Raises:
        StorageError: The database cannot be used, or the port is taken.
    """
    application = wsgi(Database(url).storage)
    try:
        server = make_server(host, port, application, handler_class=_Quiet)
    except OSError as error:
        raise StorageError(
            f"cannot listen on {host}:{port}: {error.strerror}. Give another --port."
        ) from None
    page = "" if study_id is None else f"dashboard/studies/{study_id}"
    on_ready(f"http://{host}:{server.server_port}/{page}")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
