"""The same rules on a server: leases instead of a file lock, and a password that goes nowhere."""

from __future__ import annotations

import glob
import itertools
from pathlib import Path

import pytest
import sqlalchemy as sa

from benchmarks.driver.many_trials import finish, large_study, study_of
from benchmarks.driver.postgres import PASSWORD, Server
from hpo.errors import LeaseLostError, StorageError
from hpo.storage.database import Database
from hpo.storage.leases import LEASES
from hpo.studies import create_study, open_study
from hpo.study import Study
from tests.integration.command import begin, hpo, journal, kill_group, wait_until, write_study
from tests.one_worker import Worker, again, make_spec, picture, sqlite, start
from trainers.protocol import Report


def expire_leases(url: str) -> None:
    """Let every lease run out, as if its time had passed."""
    with sa.create_engine(url).begin() as connection:
        connection.execute(LEASES.update().values(expires_at=0.0))


def test_a_study_on_postgresql_equals_the_one_on_sqlite(tmp_path: Path, postgres: Server) -> None:
    here = start(make_spec(tmp_path / "here"), sqlite(tmp_path))
    there = start(make_spec(tmp_path / "there"), postgres.create("equal"))
    for record in (here, there):
        Worker(Study(record, 6)).work()
    assert picture(here) == picture(there)


def test_two_drivers_share_a_study_and_no_trial(tmp_path: Path, postgres: Server) -> None:
    url = postgres.create("shared")
    spec = make_spec(tmp_path)
    one, two = Study(start(spec, url), 6), Study(again(spec, url), 6)
    claims = [driver.next_trial() for driver in (one, two, one, two, one, two)]
    assert [claim.number for claim in claims] == list(range(6))
    assert one.next_trial() is None
    assert two.next_trial() is None


def test_a_dead_drivers_trial_is_claimed_after_the_lease_and_not_before(
    tmp_path: Path, postgres: Server
) -> None:
    url = postgres.create("dead")
    spec = make_spec(tmp_path)
    dead, heir = Study(start(spec, url), 1), Study(again(spec, url), 1)
    dead.next_trial()
    assert heir.next_trial() is None
    expire_leases(url)
    claim = heir.next_trial()
    assert (claim.number, claim.epoch, claim.adopted) == (0, 2, True)


def test_a_slow_driver_finds_its_epoch_gone_and_changes_nothing(
    tmp_path: Path, postgres: Server
) -> None:
    url = postgres.create("slow")
    spec = make_spec(tmp_path)
    record = start(spec, url)
    slow, quick = Study(record, 1), Study(again(spec, url), 1)
    slow.next_trial()
    expire_leases(url)
    quick.next_trial()
    before = picture(record)
    with pytest.raises(LeaseLostError):
        slow.report(0, Report(0, 1, 1, {"eval_loss": 0.1}))
    with pytest.raises(LeaseLostError):
        slow.fail(0, "it broke")
    slow._renew_at = 0.0  # as when a third of the lease has passed
    assert slow.tick() == {0}
    assert picture(record) == before
    assert not quick.report(0, Report(0, 1, 1, {"eval_loss": 0.2}))


def test_rungs_are_shared_between_drivers(tmp_path: Path, postgres: Server) -> None:
    url = postgres.create("rungs")
    spec = make_spec(tmp_path)
    one, two = Study(start(spec, url), 2), Study(again(spec, url), 2)
    one.next_trial()
    two.next_trial()
    assert not one.report(0, Report(0, 1, 1, {"eval_loss": 0.1}))
    assert two.report(1, Report(1, 1, 1, {"eval_loss": 0.2}))


def test_an_unreachable_server_is_one_message_without_the_password(postgres: Server) -> None:
    with pytest.raises(StorageError) as caught:
        Database(postgres.url("postgres", password="wrong-secret"))
    assert "wrong-secret" not in str(caught.value)
    assert "cannot be used" in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_newer_schema_is_refused(postgres: Server) -> None:
    url = postgres.create("newer")
    database = Database(url)
    with database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE hpo_schema SET version = 99"))
    with pytest.raises(StorageError, match="written by a newer hpo"):
        Database(url)


@pytest.mark.ray
@pytest.mark.slow
def test_killed_and_resumed_after_the_lease_and_the_password_is_nowhere(
    tmp_path: Path, postgres: Server
) -> None:
    url = postgres.create("killed")
    env = {"PGPASS_FOR_TEST": PASSWORD}
    storage = url.replace(PASSWORD, "${PGPASS_FOR_TEST}")
    write_study(
        tmp_path,
        storage=storage,
        lease_s=4,
        fixed={"step_s": 0.15, "max_steps": 12},
    )
    # The URL with its password on the command line is the worst case.
    process = begin(tmp_path, "run", "study.yaml", "--trials", "4", "--storage", url, env=env)
    wait_until(lambda: len(journal(tmp_path)) > 8, "eight steps are trained")
    kill_group(process)
    sessions = glob.glob(f"/tmp/ray/session_2*_{process.pid}")
    assert sessions, "of the killed run; the next one removes it"
    leaks = _files_with(PASSWORD, *map(Path, sessions))
    result = hpo(tmp_path, "resume", "study.yaml", env=env)
    assert result.code == 0, result.err
    trials = hpo(tmp_path, "status", "study.yaml", "--json", env=env).json()["trials"]
    assert {t["state"] for t in trials} <= {"COMPLETE", "PRUNED"}
    assert [t["number"] for t in trials] == [0, 1, 2, 3]
    assert PASSWORD not in result.err + result.out
    assert not [*leaks, *_files_with(PASSWORD, tmp_path)]


def _files_with(secret: str, *folders: Path) -> list[Path]:
    """Return every file under the folders that contains a secret."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes():
                found.append(path)
    return found


def num_read(study: Study) -> int:
    """Return how many rows of trials the server has looked at so far, by an index or without."""
    query = """
        SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'trials')
             + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'trials')
    """
    with study.record.database.engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_stat_force_next_flush()"
        )  # of what it has counted itself
        connection.commit()
        return int(connection.exec_driver_sql(query).scalar_one())


def test_a_proposal_and_a_report_read_no_trial_that_the_driver_knows(
    tmp_path: Path, postgres: Server
) -> None:
    num_known, url = 600, postgres.create("large")
    spec = study_of(tmp_path, "random")
    large_study(spec, url, num_known).database.close()
    study = Study(open_study("large", url), num_known + 50)
    counted = [num_read(study)]
    for _ in range(6):
        for _ in range(6):
            finish(study, study.next_trial().number)
        counted.append(num_read(study))
    read = [after - before for before, after in itertools.pairwise(counted)]
    assert max(read) < num_known
    study.close()


def test_the_server_keeps_what_it_has_prepared_from_one_trial_to_the_next(
    tmp_path: Path, postgres: Server
) -> None:
    record = create_study(study_of(tmp_path, "random"), postgres.create("prepared"))
    study = Study(record, 12)
    for _ in range(12):
        finish(study, study.next_trial().number)
    with record.database.engine.connect() as connection:
        query = "SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE '%%ended%%'"
        (num_planned_once,) = connection.exec_driver_sql(query).scalars()
    assert num_planned_once > 3
    study.close()
