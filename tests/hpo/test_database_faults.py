"""SQLite that fails under a study: locked, full, read-only, torn, swapped; and acts that are repeated."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

import hpo.storage.database_faults
from hpo.errors import ExhaustedError, HpoError, StorageError
from hpo.storage.database import Database
from hpo.storage.database_faults import may_pass, storage_error, without_secrets
from hpo.study import Study
from tests.one_worker import Worker, again, make_spec, picture, sqlite, start
from trainers.protocol import Report

NUM_TRIALS = 5
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    record = start(make_spec(folder), sqlite(folder))
    Worker(Study(record, NUM_TRIALS)).work()
    return picture(record)


@contextmanager
def other_writer(path: Path, seconds: float) -> Iterator[None]:
    """Hold the file's write lock for a while, as another program does."""
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(seconds, connection.execute, ["COMMIT"])
    timer.start()
    try:
        yield
    finally:
        timer.join()
        connection.close()


def interrupted(study: Study, at: tuple[int, int], act: Callable[[], object]) -> Worker:
    """Return a worker of a study to which something happens before a report is stored."""
    real = study._file
    waiting = [at]

    def file(number: int, report: Report, value: float) -> None:
        if waiting and (number, report.step) == waiting[0]:
            waiting.clear()
            act()
        real(number, report, value)

    study._file = file  # type: ignore[method-assign]
    return Worker(study)


class TestBusy:
    @pytest.mark.parametrize("busy_s", [1.2, pytest.param(30.0, marks=pytest.mark.soak)])
    def test_another_programs_write_is_waited_for_and_said(
        self,
        busy_s: float,
        tmp_path: Path,
        undisturbed: list[Any],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if busy_s < 5:
            monkeypatch.setattr("hpo.storage.database.BUSY_TIMEOUT_S", 0.2)
            monkeypatch.setattr(hpo.storage.database_faults, "TELL_AFTER_S", 0.1)
        record = start(make_spec(tmp_path), sqlite(tmp_path))
        blocks = other_writer(tmp_path / "hpo.db", busy_s)
        worker = interrupted(Study(record, NUM_TRIALS), (0, 3), blocks.__enter__)
        worker.work()
        blocks.__exit__(None, None, None)
        assert picture(record) == undisturbed
        said = [r.getMessage() for r in caplog.records if r.name == "hpo.storage.database_faults"]
        assert len(said) == 2, said
        assert "does not answer" in said[0]
        assert "locked" in said[0]
        assert "answers again" in said[1]

    def test_one_that_does_not_end_is_one_message_and_resume_mends(
        self, tmp_path: Path, undisturbed: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hpo.storage.database.BUSY_TIMEOUT_S", 0.1)
        monkeypatch.setattr(hpo.storage.database_faults, "RETRY_FOR_S", 0.5)
        spec = make_spec(tmp_path)
        study = Study(start(spec, sqlite(tmp_path)), NUM_TRIALS)
        blocks = other_writer(tmp_path / "hpo.db", 2)
        with pytest.raises(StorageError, match="Another program keeps it locked"):
            interrupted(study, (1, 1), blocks.__enter__).work()
        with pytest.raises(StorageError):
            study.close()
        blocks.__exit__(None, None, None)
        Worker(Study(again(spec, sqlite(tmp_path)), NUM_TRIALS)).work()
        assert picture(study.record) == undisturbed

    def test_a_long_reader_and_a_checkpoint_of_the_log_are_not_even_noticed(
        self, tmp_path: Path, undisturbed: list[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        record = start(make_spec(tmp_path), sqlite(tmp_path))
        reader = sqlite3.connect(tmp_path / "hpo.db", isolation_level=None, timeout=0)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM trials").fetchall()
        other = sqlite3.connect(tmp_path / "hpo.db", isolation_level=None, timeout=0)
        looks: list[Any] = []
        study = Study(record, NUM_TRIALS)
        worker = interrupted(
            study,
            (1, 1),
            lambda: looks.extend(other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()),
        )
        worker.work()
        assert looks[0][0] == 1  # busy: the reader is still there
        reader.execute("COMMIT")
        assert picture(record) == undisturbed
        assert not caplog.records


CHILD = """
import resource, signal, sys
from pathlib import Path
from hpo.errors import StorageError
from hpo.study import Study
from tests.hpo.test_database_faults import interrupted
from tests.one_worker import again, make_spec, sqlite

folder = Path(sys.argv[1])
study = Study(again(make_spec(folder), sqlite(folder)), {num_trials})
def fault():
    {fault}
try:
    interrupted(study, (1, 1), fault).work()
except StorageError as error:
    print(error)
    try:
        study.close()
    except StorageError:
        pass
    sys.exit(error.exit_code)
"""
FULL = """
    import os
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = os.path.getsize(folder / "hpo.db-wal") + 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
"""
AS_NOBODY = """
import os, sys
from pathlib import Path
from hpo.errors import StorageError
from hpo.studies import open_study
from hpo.study import Study

folder = Path(sys.argv[1])
file = folder / "hpo.db"
for folder_mode, file_mode in ((0o755, 0o644), (0o555, 0o666), (0o777, 0o600)):
    folder.chmod(folder_mode)
    file.chmod(file_mode)
    os.setegid(65534)
    os.seteuid(65534)
    try:
        Study(open_study("s", f"sqlite:///{file}"), 1)
    except StorageError as error:
        print(error)
    os.seteuid(0)
"""


def child(folder: Path, fault: str) -> subprocess.CompletedProcess[str]:
    """Drive a study in a process to which a fault happens; return how it ended."""
    return subprocess.run(
        [sys.executable, "-c", CHILD.format(fault=fault.strip(), num_trials=NUM_TRIALS), folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestNoUseWaiting:
    def test_a_full_disk_ends_the_driver_at_once_and_resume_mends(
        self, tmp_path: Path, undisturbed: list[Any]
    ) -> None:
        spec = make_spec(tmp_path)
        record = start(spec, sqlite(tmp_path))
        ended = child(tmp_path, FULL)
        assert ended.returncode == 2, ended.stderr
        assert "disk" in ended.stdout
        assert "hpo resume" in ended.stdout
        assert len(ended.stdout.splitlines()) == 1
        assert "Traceback" not in ended.stderr
        record.database.close()
        Worker(Study(again(spec, sqlite(tmp_path)), NUM_TRIALS)).work()
        assert picture(again(spec, sqlite(tmp_path))) == undisturbed

    def test_a_database_that_may_not_grow_says_to_free_space(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path, sampler={"type": "random"})
        study = Study(start(spec, sqlite(tmp_path)), 40)

        def fill() -> None:
            with study.record.database.engine.connect() as connection:
                pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
                connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

        with pytest.raises(StorageError, match=r"full\. Free space on its disk") as caught:
            interrupted(study, (0, 2), fill).work()
        assert "hpo resume" in str(caught.value)
        study._lock.release()
        study.record.database.close()
        Worker(Study(again(spec, sqlite(tmp_path)), 40)).work()
        trials = again(spec, sqlite(tmp_path)).trials()
        assert [trial.number for trial in trials] == list(range(40))
        assert {trial.state for trial in trials} == {"COMPLETE", "PRUNED"}

    def test_a_database_that_may_only_be_read_says_so_at_once(
        self, tmp_path: Path, undisturbed: list[Any]
    ) -> None:
        spec = make_spec(tmp_path)
        study = Study(start(spec, sqlite(tmp_path)), NUM_TRIALS)

        def forbid() -> None:
            with study.record.database.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA query_only=1")

        with pytest.raises(StorageError, match=r"readonly database\. Make its file"):
            interrupted(study, (0, 2), forbid).work()
        study._lock.release()
        study.record.database.close()
        Worker(Study(again(spec, sqlite(tmp_path)), NUM_TRIALS)).work()
        assert picture(again(spec, sqlite(tmp_path))) == undisturbed

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
    def test_one_of_another_users_is_one_message(self, tmp_path: Path) -> None:
        start(make_spec(tmp_path), sqlite(tmp_path)).database.close()
        for path in (tmp_path, *tmp_path.parents):
            if not path.stat().st_mode & 0o001:  # /tmp stays as it is: apt-get writes there as _apt
                path.chmod(0o755)
        ended = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, tmp_path],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        said = ended.stdout.splitlines()
        assert len(said) == 3, said
        assert all("ritable for you" in line or "may read and write" in line for line in said), said


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a folder as a killed driver leaves it, and a copy: the newest rows are in the -wal."""
    folder = tmp_path_factory.mktemp("killed")
    start(make_spec(folder), sqlite(folder)).database.close()
    ended = child(folder, "import os; os.kill(os.getpid(), 9)")
    assert ended.returncode == -9, ended.stderr
    assert (folder / "hpo.db-wal").stat().st_size > 0
    return folder, Path(shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "copy"))


class TestFiles:
    @pytest.mark.parametrize("harm", ["shm gone", "shm torn", "wal gone", "wal torn", "wal half"])
    def test_what_a_kill_left_beside_the_file_may_go_or_be_torn(
        self, harm: str, killed: tuple[Path, Path], undisturbed: list[Any]
    ) -> None:
        tmp_path, copy = killed
        shutil.rmtree(tmp_path)
        shutil.copytree(copy, tmp_path)
        path = tmp_path / "hpo.db"
        which, how = harm.split()
        beside = path.with_name(f"hpo.db-{which}")
        if how == "gone":
            beside.unlink()
        elif how == "torn":
            size = beside.stat().st_size
            with beside.open("r+b") as file:
                file.seek(size // 2)
                file.write(random.Random(0).randbytes(size // 2))
        else:
            os.truncate(beside, beside.stat().st_size // 2 + 17)
        spec = make_spec(tmp_path)
        try:
            Worker(Study(again(spec, sqlite(tmp_path)), NUM_TRIALS)).work()
        except HpoError:  # one clear message; any other error is a failure
            assert which == "wal"
            return
        assert picture(again(spec, sqlite(tmp_path))) == undisturbed

    @pytest.mark.parametrize("how", ["replaced", "removed"])
    def test_a_file_swapped_while_it_is_in_use_is_found_out_at_the_next_act(
        self, how: str, tmp_path: Path, undisturbed: list[Any]
    ) -> None:
        spec = make_spec(tmp_path)
        path = tmp_path / "hpo.db"
        study = Study(start(spec, sqlite(tmp_path)), NUM_TRIALS)
        backup = tmp_path / "backup.db"

        def swap() -> None:
            with sqlite3.connect(path) as source, sqlite3.connect(backup) as target:
                source.backup(target)
            path.unlink()
            if how == "replaced":
                shutil.copy(backup, path)

        with pytest.raises(StorageError, match="removed or replaced by another"):
            interrupted(study, (1, 1), swap).work()
        with pytest.raises(StorageError):
            study.close()
        study.record.database.close()
        for beside in ("hpo.db-wal", "hpo.db-shm"):
            path.with_name(beside).unlink(missing_ok=True)
        backup.replace(path)
        Worker(Study(again(spec, sqlite(tmp_path)), NUM_TRIALS)).work()
        assert picture(again(spec, sqlite(tmp_path))) == undisturbed

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"my notes\n" * 1000, "not a database"),
            (b"SQLite format 3\0" + bytes(range(256)) * 40, ""),
        ],
        ids=["notes", "garbage"],
    )
    def test_a_file_that_is_no_database_is_one_message(
        self, content: bytes, said: str, tmp_path: Path
    ) -> None:
        (tmp_path / "hpo.db").write_bytes(content)
        with pytest.raises(StorageError, match=said) as caught:
            Database(sqlite(tmp_path))
        assert "backup" in str(caught.value) or "Check" in str(caught.value)

    def test_pages_that_turn_to_garbage_are_one_message(self, tmp_path: Path) -> None:
        spec = make_spec(tmp_path)
        record = start(spec, sqlite(tmp_path))
        Worker(Study(record, 3)).work()
        record.database.close()
        with sqlite3.connect(tmp_path / "hpo.db") as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        path = tmp_path / "hpo.db"
        whole = path.read_bytes()
        refused = 0
        for page in range(0, len(whole) // 4096, 3):
            torn = bytearray(whole)
            torn[page * 4096 : (page + 1) * 4096] = b"\xa5" * 4096
            path.write_bytes(torn)
            for beside in ("hpo.db-wal", "hpo.db-shm"):
                path.with_name(beside).unlink(missing_ok=True)
            try:
                study = Study(again(spec, sqlite(tmp_path)), 4)
                study._lock.release()
                study.record.database.close()
            except HpoError:  # one clear message; any other error is a failure
                refused += 1
        assert refused > 5


class TestRepeatedActs:
    """Each act's answer is lost once, after its commit."""

    @pytest.fixture
    def losing(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Database], list[int]]:
        real = Database.write
        monkeypatch.setattr(
            "hpo.storage.database_faults.wait_exponential_jitter", lambda **_: lambda state: 0.0
        )

        def arm(database: Database) -> list[int]:
            lost: list[int] = []

            def write(self: Database, act: Callable[[sa.Connection], Any]) -> Any:
                first = True

                def once() -> Any:
                    nonlocal first
                    with self.engine.begin() as connection:
                        result = act(connection)
                    if first:
                        first = False
                        lost.append(1)
                        gone = sqlite3.OperationalError("the answer is lost")
                        gone.sqlite_errorcode = sqlite3.SQLITE_BUSY
                        raise sa.exc.OperationalError("", {}, gone)
                    return result

                return self.guarded(once)

            monkeypatch.setattr(Database, "write", write)
            return lost

        yield arm
        monkeypatch.setattr(Database, "write", real)

    def test_a_study_whose_every_answer_is_lost_once_is_the_same(
        self, tmp_path: Path, undisturbed: list[Any], losing: Callable[..., list[int]]
    ) -> None:
        lost = losing(None)
        record = start(make_spec(tmp_path), sqlite(tmp_path))
        study = Study(record, NUM_TRIALS)
        claim = study.next_trial()
        assert study.lose(claim.number, "its node was lost")
        study.close()
        study = Study(again(record.spec, sqlite(tmp_path)), NUM_TRIALS)
        claim = study.next_trial()
        assert (claim.number, claim.adopted, study.num_losses(0)) == (0, True, 1)
        worker = Worker(study)
        worker.train(claim.number, claim.config)
        worker.work()
        assert len(lost) > 30
        assert picture(record) == undisturbed
        record.delete()
        assert (
            start(record.spec.model_copy(update={"study": "t"}), sqlite(tmp_path)).num_trials() == 0
        )

    def test_a_trial_that_has_ended_cannot_be_handed_back(self, tmp_path: Path) -> None:
        study = Study(start(make_spec(tmp_path), sqlite(tmp_path)), 1)
        claim = study.next_trial()
        study.fail(0, "it broke")
        study._claims[0] = claim  # as if the driver had died while it told
        study.close()
        (trial,) = study.record.stored.all()
        assert trial.state is TrialState.FAIL
        with pytest.raises(ExhaustedError):
            Study(again(study.spec, sqlite(tmp_path)), 1).next_trial()

    def test_what_a_trial_said_first_stands(self, tmp_path: Path) -> None:
        study = Study(start(make_spec(tmp_path), sqlite(tmp_path)), 1)
        study.next_trial()
        trial_id = study._trials.id_of(0)
        for value in (0.5, 0.7):
            said = {"step": 1, "metrics": {"eval_loss": value}}
            study._rows.report(trial_id, 1, 1, said, value, trial_id, {})
        (trial,) = study.record.trials()
        assert (trial.value, trial.reports[1]["metrics"]["eval_loss"]) == (0.5, 0.5)


def test_a_lost_row_does_not_hand_its_checkpoint_to_another_config(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    study = Study(start(spec, sqlite(tmp_path)), 1)
    study.store.write(0, 3, [], True, lambda folder: (folder / "x").write_text("of the past"))
    assert study.store.steps(0) == [3]
    study.next_trial()
    assert study.store.steps(0) == []


@pytest.mark.parametrize(
    "text",
    [
        "connect to postgresql+psycopg://hpo:s3cr3t@db/x failed",
        "postgresql://hpo:s3c@r3t@db/x",
        "conninfo: host=db password=s3cr3t user=hpo",
        "conninfo: password='s3c r\\'3t' user=hpo",
        "sslpassword = s3cr3t",
    ],
)
def test_no_message_has_a_password(text: str) -> None:
    hidden = without_secrets(text)
    assert "s3c" not in hidden
    assert "3t" not in hidden
    error = storage_error("x", RuntimeError(text))
    assert "s3c" not in str(error)


def test_only_what_may_pass_is_tried_again() -> None:
    def fault(message: str, code: int) -> sa.exc.OperationalError:
        error = sqlite3.OperationalError(message)
        error.sqlite_errorcode = code
        # What a trial's config says does not decide.
        return sa.exc.OperationalError("INSERT", {"config": "disk full readonly"}, error)

    assert may_pass(fault("database is locked", sqlite3.SQLITE_BUSY))
    assert may_pass(fault("database is locked", 517))  # SQLITE_BUSY_SNAPSHOT
    for code in (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
    ):
        assert not may_pass(fault("no", code))
    assert not may_pass(sa.exc.IntegrityError("INSERT", {}, sqlite3.IntegrityError("twice")))
