"""A PostgreSQL that fails under a study: cut off, restarted, gone. The study comes out the same."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hpo.storage.database_faults
from benchmarks.driver.postgres import PASSWORD, Server, running_server
from hpo.errors import StorageError
from hpo.study import Study
from tests.integration.cutting_proxy import cutting_proxy
from tests.integration.test_drivers import cut
from tests.one_worker import Worker, again, make_spec, picture, sqlite, start
from trainers.protocol import Report

NUM_TRIALS = 5


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    record = start(make_spec(folder), sqlite(folder))
    Worker(Study(record, NUM_TRIALS)).work()
    return picture(record)


@pytest.fixture
def own_server() -> Iterator[Server]:
    """Yield a server that a test may stop."""
    with running_server() as server:
        yield server


def assert_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """See that no library wrote a traceback, and nobody a password."""
    for record in caplog.records:
        assert not (record.name.startswith("sqlalchemy") and record.levelno >= logging.ERROR)
        assert PASSWORD not in record.getMessage()


def test_a_study_whose_connections_are_cut_again_and_again_is_the_same(
    tmp_path: Path,
    postgres: Server,
    undisturbed: list[Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = postgres.create("cut-often")
    record = start(make_spec(tmp_path), url)
    num_killed, over, one_cutter = 0, threading.Event(), threading.Lock()

    def kill_all() -> None:
        nonlocal num_killed
        while not over.wait(0.1):  # in mid-write, wherever that is
            with one_cutter:
                num_killed += cut(url)

    study = Study(record, NUM_TRIALS)
    real, num_reports = study.report, 0

    def report(number: int, said: Report) -> bool:
        nonlocal num_killed, num_reports
        num_reports += 1
        if num_reports % 3 == 0:
            with one_cutter:
                num_killed += cut(url)
        return real(number, said)

    monkeypatch.setattr(study, "report", report)
    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        Worker(study).work()
    finally:
        over.set()
        killer.join()
    assert num_killed >= 5
    assert picture(record) == undisturbed
    assert_quiet(caplog)


def test_a_commit_whose_answer_is_lost_is_done_once(
    tmp_path: Path, postgres: Server, undisturbed: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.create("answers-lost")
    with cutting_proxy(postgres.port) as proxy:
        through = url.replace(f":{postgres.port}/", f":{proxy.port}/")
        record = start(make_spec(tmp_path), through)
        proxy.every = 4
        Worker(Study(record, NUM_TRIALS)).work()
        assert proxy.num_cut >= 8, proxy.num_cut
    assert picture(again(record.spec, url)) == undisturbed
    assert_quiet(caplog)


def test_a_server_that_crashes_and_comes_back_is_waited_for_and_the_user_told(
    tmp_path: Path,
    own_server: Server,
    undisturbed: list[Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hpo.storage.database_faults, "TELL_AFTER_S", 0.0)
    record = start(make_spec(tmp_path), own_server.create("restarted"))
    study = Study(record, NUM_TRIALS)
    worker = Worker(study)
    num_crashes, real = 0, study.report
    down: list[threading.Timer] = []

    def report(number: int, said: Report) -> bool:
        nonlocal num_crashes
        if (number, said.step) in ((0, 4), (2, 1)):
            num_crashes += 1
            own_server.stop()
            down.append(threading.Timer(0.5, own_server.start))
            down[-1].start()
        return real(number, said)

    monkeypatch.setattr(study, "report", report)
    worker.work()
    for timer in down:
        timer.join()
    assert num_crashes == 2
    assert picture(record) == undisturbed
    said = [r.getMessage() for r in caplog.records if r.name == "hpo.storage.database_faults"]
    assert sum("does not answer" in line for line in said) == 2, said
    assert sum("answers again" in line for line in said) == 2, said
    assert_quiet(caplog)


def test_a_server_that_stays_away_ends_the_driver_at_once_with_one_message_and_resume_mends(
    tmp_path: Path,
    own_server: Server,
    undisturbed: list[Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = own_server.create("gone")
    spec = make_spec(tmp_path, lease_s=1)
    study = Study(start(spec, url), NUM_TRIALS)
    worker, real = Worker(study), study._file

    def report(number: int, *args: Any) -> None:
        if number == 1:
            own_server.stop()
        real(number, *args)

    monkeypatch.setattr(study, "_file", report)
    monkeypatch.setattr(hpo.storage.database_faults, "RETRY_FOR_S", 2.0)
    begun = time.monotonic()
    with pytest.raises(StorageError, match="cannot be used") as caught:
        worker.work()
    waited = time.monotonic() - begun
    begun = time.monotonic()
    with pytest.raises(StorageError):
        study.close()  # as the driver does on its way out
    assert time.monotonic() - begun < 1.5  # it has waited long enough
    assert waited >= 1.5
    assert PASSWORD not in str(caught.value)
    assert caught.value.exit_code == 2
    assert "hpo resume" in str(caught.value)

    own_server.start()
    monkeypatch.setattr(hpo.storage.database_faults, "RETRY_FOR_S", 60.0)
    resumed = Study(again(spec, url), NUM_TRIALS)
    deadline = time.monotonic() + 20
    while (claim := resumed.next_trial()) is None:  # until the lease of the one that left runs out
        assert time.monotonic() < deadline, "the lease does not run out"
        time.sleep(0.05)
    assert claim.number in (1, 2)  # it may have ended by the report that its checkpoint has
    worker = Worker(resumed)
    worker.train(claim.number, claim.config)
    worker.work()
    assert picture(resumed.record) == undisturbed
    assert_quiet(caplog)
