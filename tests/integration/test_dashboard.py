"""The dashboard in a real browser: what a person sees of a study."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from hpo.study import Study
from tests.integration.command import ROOT, command, environment, hpo
from tests.one_worker import Worker, make_spec, sqlite, start

pytestmark = pytest.mark.slow

ARTIFACTS = Path(os.environ.get("HPO_ARTIFACTS", ROOT / "artifacts"))
BROWSER_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,2300",
    "--virtual-time-budget=15000",
]


def browser() -> str:
    found = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    assert found, "no browser: install Debian's chromium (.ci/run does)"
    return found


def look(address: str, folder: Path, *flags: str) -> str:
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    done = subprocess.run(
        [browser(), *BROWSER_FLAGS, f"--user-data-dir={profile}", *flags, address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def drawn_page(address: str, folder: Path, num_curves: int) -> str:
    """Return the page when it shows so many learning curves; a busy machine draws late."""
    for _ in range(5):
        page = look(address, folder, "--dump-dom")
        _, _, curves = page.partition("Intermediate values")
        if curves.count("trace scatter") >= num_curves:
            return page
    raise AssertionError(f"the page does not show {num_curves} learning curves")


def test_the_page_shows_the_study_its_trials_and_their_curves(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, study="docstring-search")
    record = start(spec, sqlite(tmp_path))
    Worker(Study(record, 12)).work()
    server = subprocess.Popen(
        command("dashboard", "docstring-search", "--port", "0"),
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and what it starts inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = ""
        while "http://" not in line:
            line = server.stderr.readline()
            assert line, "the dashboard ended"
        address = "http://" + line.split("http://")[1].split()[0]
        assert address.startswith("http://127.0.0.1:")
        _wait_for(address)
        num_curves = sum(len(trial.reports) > 1 for trial in record.trials())
        assert num_curves > 1
        page = drawn_page(address, tmp_path, num_curves)
        assert "docstring-search" in page
        assert "eval_loss" in page, "the axes have the metric's name"
        ARTIFACTS.mkdir(exist_ok=True)
        look(address, tmp_path, f"--screenshot={ARTIFACTS / 'dashboard.png'}")
        trials = address.rstrip("/") + "/trials"
        listed = ""
        for _ in range(5):
            listed = look(trials, tmp_path, "--dump-dom")
            if "Pruned" in listed:
                break
        assert "Complete" in listed
        assert "Pruned" in listed
        look(trials, tmp_path, f"--screenshot={ARTIFACTS / 'dashboard-trials.png'}")
        assert (ARTIFACTS / "dashboard.png").stat().st_size > 20_000
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0


def test_listening_beyond_this_machine_is_said(tmp_path: Path) -> None:
    start(make_spec(tmp_path), sqlite(tmp_path))
    server = subprocess.Popen(
        command("dashboard", "--port", "0", "--host", "0.0.0.0"),
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "is not this machine alone" in server.stderr.readline()
    server.kill()
    server.wait()


def test_a_port_that_is_taken_is_one_message(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = hpo(tmp_path, "dashboard", "--port", str(taken.getsockname()[1]))
    assert result.code == 2
    assert "Give another --port" in result.err


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
