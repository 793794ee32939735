"""Servers listen on this machine alone, unless told otherwise; and say so when they do not."""

from __future__ import annotations

import http.client
import ipaddress
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from wsgiref.simple_server import WSGIServer

import psutil
import pytest

from hpo.dashboard import listen
from hpo.errors import StorageError
from tests.in_process import hpo_here
from tests.integration.command import begin, journal, kill_group, wait_until, write_study
from tests.one_worker import make_spec, sqlite, start


def listening(process: psutil.Process) -> list[tuple[str, str]]:
    """Return (process, address) of every socket on which a process or its children listen."""
    found = []
    for one in (process, *process.children(recursive=True)):
        try:
            name = one.name()
            sockets = one.net_connections("inet")
        except psutil.Error:  # it ended meanwhile
            continue
        found += [(name, s.laddr.ip) for s in sockets if s.status == psutil.CONN_LISTEN]
    return found


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    inner = getattr(parsed, "ipv4_mapped", None)
    return (inner or parsed).is_loopback


@pytest.mark.slow
@pytest.mark.ray
def test_no_process_of_a_run_listens_beyond_this_machine(tmp_path: Path) -> None:
    write_study(tmp_path, fixed={"step_s": 0.3, "max_steps": 60})
    run = begin(tmp_path, "run", "study.yaml", "--trials", "4")
    try:
        wait_until(lambda: run.poll() is not None or len(journal(tmp_path)) > 4, "two trials train")
        assert run.poll() is None, (tmp_path / "hpo.log").read_text()
        found = listening(psutil.Process(run.pid))
        names = {name for name, _ in found}
        assert len(found) >= 4, found
        assert {"gcs_server", "raylet"} <= names, f"Ray's servers are not seen: {names}"
        assert not [(name, address) for name, address in found if not is_loopback(address)]
    finally:
        kill_group(run)


@contextmanager
def dashboard(folder: Path, host: str) -> Iterator[tuple[str, str]]:
    """Serve the dashboard from a thread; yield the address it is bound to, and its URL."""
    start(make_spec(folder), sqlite(folder))
    server = listen(sqlite(folder), host, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield str(server.server_address[0]), f"http://{shown}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(30)
        assert not thread.is_alive()


def ask(address: str, method: str = "GET", path: str = "/api/studies", **headers: str) -> int:
    found = re.fullmatch(r"http://\[?([^\]/]+?)\]?:(\d+)/.*", address)
    assert found
    connection = http.client.HTTPConnection(found[1], int(found[2]), timeout=30)
    try:
        connection.request(method, path, headers={k.title(): v for k, v in headers.items()})
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_dashboard_answers_this_machine_alone_and_no_other_name(tmp_path: Path) -> None:
    with dashboard(tmp_path, "127.0.0.1") as (bound, address):
        assert bound == "127.0.0.1"
        assert ask(address) == 200
        assert ask(address, host="localhost:8080") == 200
        assert ask(address, host="[::1]:8080") == 200
        for name in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "0.0.0.0", "["):
            assert ask(address, host=name) == 403, name
        study = "/api/studies/1"
        assert ask(address, "DELETE", study, origin="http://evil.example") == 403
        assert ask(address, "DELETE", study, origin="null") == 403
        assert ask(address, "DELETE", study, origin="http://127.0.0.1:1") == 403
        assert ask(address, "DELETE", study, origin=address.strip("/")) == 204


@pytest.mark.parametrize(("host", "bound"), [("::1", "::1"), ("localhost", "127.0.0.1")])
def test_this_machine_has_other_names(host: str, bound: str, tmp_path: Path) -> None:
    with dashboard(tmp_path, host) as (found, address):
        assert found == bound
        assert ask(address) == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_dashboard_for_all_is_asked_for_by_its_address(host: str, tmp_path: Path) -> None:
    with dashboard(tmp_path, host) as (found, address):
        assert found == host
        assert ask(address, host="my-machine.example:8080") == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.1", "::1", "localhost"])
def test_a_dashboard_that_others_reach_says_so(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WSGIServer, "serve_forever", WSGIServer.server_close)
    start(make_spec(tmp_path), sqlite(tmp_path))
    said = hpo_here(tmp_path, "dashboard", "--port", "0", "--host", host)
    assert said.code == 0
    warned = f"warning: {host} is not this machine alone" in said.err
    assert warned == (host in ("0.0.0.0", "::"))
    assert "http://" in said.err


@pytest.mark.parametrize(
    "host", ["", " ", "no.such.host.invalid", "256.1.1.1", "a" * 300, "1::2::3"]
)
def test_an_address_that_is_none_is_one_message(host: str, tmp_path: Path) -> None:
    start(make_spec(tmp_path), sqlite(tmp_path))
    with pytest.raises(StorageError, match="--host"):
        hpo_here(tmp_path, "dashboard", "--port", "0", "--host", host, debug=True)
