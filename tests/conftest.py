"""Servers that several tests share, and threads that they do not."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from benchmarks.driver.postgres import Server, running_server
from tests.s3_server import running_s3

# Threads that wait for work shall sleep: by default they spin, and take the cores from other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread in each process, before torch loads
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The options that an address of the local server ends with."""
    with running_s3() as options:
        yield options


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    with running_server() as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many processes were killed for the tests that passed."""
    passed = terminalreporter.getreports("passed")
    counts = [int(str(n)) for test in passed for name, n in test.user_properties if name == "kills"]
    if counts:
        terminalreporter.write_line(f"{sum(counts)} kills survived in {len(counts)} tests")
