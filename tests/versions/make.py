"""Stores a study with trials in every state, by whatever version of `hpo` is on the path.

Run it with the version that is to be kept, in a worktree of its commit; then name it in README.md:

    git worktree add --detach /tmp/old COMMIT
    PYTHONPATH=/tmp/old python tests/versions/make.py tests/versions/COMMIT.tar.xz

Uses only what every version had: the study, its checkpoints and the worker of its own tests.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import tarfile
import tempfile
from pathlib import Path

from hpo.study import Study
from tests.one_worker import Worker, make_spec, picture, sqlite, start

FOLDER = "@FOLDER@"
"""Stands in the archive for the folder that it is unpacked in."""

NUM_TRIALS = 10
POINTS = [
    {"x": 0.9, "y": 1, "kind": "a"},  # complete
    {"x": 0.6, "y": 1, "kind": "a"},  # complete, and the best
    {"x": -0.5, "y": 1, "kind": "a"},  # pruned
    {"x": 0.97, "y": 1, "kind": "a"},  # failed
    {"x": 0.6, "y": 2, "kind": "a"},  # killed after its fourth report
    {"x": 0.6, "y": 3, "kind": "a"},  # killed with its third checkpoint, before that was reported
    {"x": 0.6, "y": 4, "kind": "a"},  # handed back after its second report
    {"x": 0.6, "y": 1, "kind": "b"},  # handed back before its first step
]


class KilledError(Exception):
    """The driver is no more."""


def main(archive: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        make(folder)
        for path in (folder / "runs").rglob("*.json"):
            path.write_text(path.read_text().replace(str(folder), FOLDER))
        with tarfile.open(archive, "w:xz") as tar:
            for path in sorted(folder.iterdir()):
                tar.add(path, path.name, filter=_of_nobody)


def _of_nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def make(folder: Path) -> None:
    spec = make_spec(
        folder,
        fixed={"max_steps": 9, "fail_above": 0.95},
        enqueue=POINTS,
        budget={"trials": NUM_TRIALS},
    )
    study = Study(start(spec, sqlite(folder)), NUM_TRIALS)
    worker = Worker(study)
    for number in range(4):
        claim = study.next_trial()
        assert claim is not None
        assert claim.number == number
        worker.train(number, claim.config)
    _train_until(worker, 4, reported=4)
    _train_until(worker, 5, reported=2, saved=3)
    _train_until(worker, 6, reported=2)
    waiting = study.next_trial()
    assert waiting is not None
    assert waiting.number == 7
    study.release(6)
    study.release(7)
    found = [list(row) for row in picture(study.record)]
    (folder / "expected.json").write_text(json.dumps(found))
    study.record.database.close()
    with contextlib.closing(sqlite3.connect(folder / "hpo.db")) as database:
        with database:
            for table in ("study_system_attributes", "trial_system_attributes"):
                database.execute(
                    f"UPDATE {table} SET value_json = replace(value_json, ?, ?)",
                    (str(folder), FOLDER),
                )
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("VACUUM")
    for leftover in folder.glob("hpo.db.*"):
        leftover.unlink()


def _train_until(worker: Worker, number: int, reported: int, saved: int = 0) -> None:
    """Train a trial until its driver is killed: after a report, or between checkpoint and report."""
    study = worker.study
    claim = study.next_trial()
    assert claim is not None
    assert claim.number == number
    report = study.report

    def report_or_die(trial: int, said: object) -> bool:
        validation = said.validation  # type: ignore[attr-defined]
        if validation == saved:
            raise KilledError
        ended = report(trial, said)  # type: ignore[arg-type]
        assert not ended
        if validation == reported and not saved:
            raise KilledError
        return ended

    study.report = report_or_die  # type: ignore[method-assign]
    try:
        worker.train(number, claim.config)
    except KilledError:
        return
    finally:
        study.report = report  # type: ignore[method-assign]
    raise AssertionError("it was to be killed")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
