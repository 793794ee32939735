"""A study of an older version goes on under today's; one of a newer version is refused."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tarfile
from pathlib import Path

import pytest

from benchmarks.driver.postgres import Server
from hpo.errors import CheckpointError, HpoError, StorageError, StudyError
from hpo.storage.database import SCHEMA_VERSION
from hpo.store.manifest import FORMAT, MANIFEST
from hpo.studies import create_study, open_study
from hpo.study import Study
from tests.in_process import hpo_here
from tests.one_worker import Worker, make_spec, picture, sqlite
from tests.versions.make import FOLDER, NUM_TRIALS

HERE = Path(__file__).parent
VERSIONS = sorted(path.name.removesuffix(".tar.xz") for path in HERE.glob("*.tar.xz"))
ENDED = [0, 1, 2, 3]
NEWEST_STEP = {4: 4, 5: 3, 6: 2, 7: 0}
"""Of each unfinished trial's newest checkpoint; 5's has a report that the database lacks."""


def unpack(version: str, folder: Path) -> list[list[object]]:
    """Put a stored study into a folder; return what its own version said of its trials."""
    with tarfile.open(HERE / f"{version}.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    for path in folder.rglob("trial.json"):
        path.write_text(path.read_text().replace(FOLDER, str(folder)))
    change(
        folder,
        "UPDATE study_system_attributes SET value_json = replace(value_json, ?, ?)",
        FOLDER,
        str(folder),
    )
    expected: list[list[object]] = json.loads((folder / "expected.json").read_text())
    return expected


def change(folder: Path, statement: str, *values: object) -> None:
    with contextlib.closing(sqlite3.connect(folder / "hpo.db")) as database, database:
        assert database.execute(statement, values).rowcount != 0, "it changed nothing"


def as_json(rows: object) -> object:
    return json.loads(json.dumps(rows))


def test_there_is_a_study_of_every_schema_so_far() -> None:
    assert len(VERSIONS) >= 3
    assert sum((HERE / f"{version}.tar.xz").stat().st_size for version in VERSIONS) < 300_000


@pytest.mark.parametrize("version", VERSIONS)
def test_an_older_study_goes_on_where_it_stood(version: str, tmp_path: Path) -> None:
    expected = unpack(version, tmp_path)
    states = [row[1] for row in expected]
    assert sorted(states) == sorted(
        ["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "RUNNING", "RUNNING", "WAITING", "WAITING"]
    )
    record = open_study("s", sqlite(tmp_path))
    assert as_json(picture(record)) == expected, "looking alone changes nothing"
    worker = Worker(Study(record, NUM_TRIALS))
    worker.work()

    now = as_json(picture(open_study("s", sqlite(tmp_path))))
    assert [now[number] for number in ENDED] == [expected[number] for number in ENDED]
    assert len(now) == NUM_TRIALS
    assert not {row[1] for row in now} & {"RUNNING", "WAITING"}
    for number, step in NEWEST_STEP.items():
        steps = [done for trial, done in worker.trained if trial == number]
        assert steps[0] == step + 1, f"trial {number} went on from its checkpoint"
        assert [now[number][4], now[number][5]] == [expected[number][4], expected[number][5]]
        filed = list(map(int, now[number][6]))
        assert filed == list(range(1, len(filed) + 1)), "no validation is missing"
        stored = expected[number][6]
        assert {index: now[number][6][index] for index in stored} == stored
    assert not {trial for trial, _ in worker.trained} & set(ENDED)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_older_study_is_read_by_every_verb(version: str, tmp_path: Path) -> None:
    unpack(version, tmp_path)
    status = hpo_here(tmp_path, "status", "s", "--json")
    assert status.code == 0, status.err
    assert json.loads(status.out)["counts"]["COMPLETE"] == 2
    listed = hpo_here(tmp_path, "list", "--json")
    assert json.loads(listed.out)[0]["trials"] == 8
    best = hpo_here(tmp_path, "best", "s", "--json")
    assert json.loads(best.out)["number"] == 1
    logs = hpo_here(tmp_path, "logs", "s", "1", "--json")
    assert logs.code == 0, logs.err
    exported = hpo_here(tmp_path, "export", "s")
    assert exported.code == 0, exported.err
    assert (tmp_path / "export" / "s" / "adapter" / "weight.json").is_file()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_older_study_takes_an_edited_file(version: str, tmp_path: Path) -> None:
    unpack(version, tmp_path)
    record = open_study("s", sqlite(tmp_path))
    changed = record.spec.model_copy(update={"max_failures": 7})
    assert record.update_spec(changed).spec.max_failures == 7
    assert open_study("s", sqlite(tmp_path)).spec == changed


def one_study(folder: Path, url: str | None = None) -> str:
    url = url or sqlite(folder)
    record = create_study(make_spec(folder), url)
    record.database.close()
    return url


def test_a_newer_schema_is_refused_on_sqlite(tmp_path: Path) -> None:
    url = one_study(tmp_path)
    change(tmp_path, "UPDATE hpo_schema SET version = ?", SCHEMA_VERSION + 1)
    with pytest.raises(StorageError, match=rf"newer hpo \(schema {SCHEMA_VERSION + 1}.*Update hpo"):
        open_study("s", url)


@pytest.mark.slow
def test_a_newer_schema_is_refused_on_postgresql(tmp_path: Path, postgres: Server) -> None:
    import sqlalchemy as sa

    url = one_study(tmp_path, postgres.create("newer_version"))
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        changed = connection.execute(
            sa.text("UPDATE hpo_schema SET version = :version"), {"version": SCHEMA_VERSION + 1}
        )
        assert changed.rowcount == 1
    engine.dispose()
    with pytest.raises(StorageError, match=rf"newer hpo \(schema {SCHEMA_VERSION + 1}.*Update hpo"):
        open_study("s", url)


@pytest.mark.parametrize("revision", ["v9.9.9.z", "v2.6.0.a"])
def test_another_optunas_tables_are_refused(revision: str, tmp_path: Path) -> None:
    url = one_study(tmp_path)
    change(tmp_path, "UPDATE alembic_version SET version_num = ?", revision)
    change(tmp_path, "UPDATE version_info SET schema_version = ?", 99)
    with pytest.raises(StorageError, match="another version of Optuna"):
        open_study("s", url)


def test_a_spec_with_fields_of_a_newer_version_is_refused_with_that_version(tmp_path: Path) -> None:
    url = one_study(tmp_path)
    change(
        tmp_path,
        "UPDATE study_system_attributes SET value_json = json_set(value_json, '$.tomorrow', 1) "
        "WHERE key = 'hpo:spec'",
    )
    change(
        tmp_path,
        "UPDATE study_system_attributes SET value_json = '\"9.1.0\"' WHERE key = 'hpo:version'",
    )
    with pytest.raises(StudyError, match=r"study 's'.*written by hpo 9\.1\.0.*'tomorrow'.*Update"):
        open_study("s", url)


def test_a_checkpoint_of_a_newer_format_is_refused_and_its_trial_not_begun_again(
    tmp_path: Path,
) -> None:
    unpack(VERSIONS[0], tmp_path)
    manifests = list((tmp_path / "runs" / "s" / "4").glob(f"*/{MANIFEST}"))
    assert len(manifests) >= 2
    for path in manifests:
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "format": FORMAT + 1}))
    study = Study(open_study("s", sqlite(tmp_path)), NUM_TRIALS)
    worker = Worker(study)
    with pytest.raises(CheckpointError, match=rf"format {FORMAT + 1}.*Update hpo"):
        worker.work()
    assert 4 not in {trial for trial, _ in worker.trained}
    assert study._lock is not None
    study._lock.release()


def test_all_these_refusals_are_errors_that_the_command_line_shows_as_a_message() -> None:
    assert issubclass(StorageError, HpoError)
    assert issubclass(StudyError, HpoError)
    assert issubclass(CheckpointError, HpoError)
