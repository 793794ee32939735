"""What `hpo` itself has stored: rows, the database's file, checkpoints and logs; then spoilt."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from hpo import trial_log
from hpo.errors import HpoError, TrainerError
from hpo.store.manifest import HISTORY, MANIFEST, checksum
from hpo.studies import open_study
from hpo.study import Claim, Study
from tests.fuzz.mutation import Mutator
from tests.fuzz.surface import Attempt
from tests.in_process import hpo_here
from tests.one_worker import Worker, make_spec, start
from trainers.protocol import Report

TRIALS_ASKED = 8
VERBS: tuple[tuple[str, ...], ...] = (
    ("status", "s"),
    ("status", "s", "--json"),
    ("best", "s"),
    ("list",),
    ("logs", "s", "0"),
    ("logs", "s", "0", "--samples"),
    ("export", "s"),
    ("stop", "s"),
    ("delete", "s", "--yes"),
)
JSON_COLUMNS = {
    "study_system_attributes": "value_json",
    "trial_system_attributes": "value_json",
    "trial_user_attributes": "value_json",
    "trial_params": "distribution_json",
}
KEYS = ("hpo:spec", "hpo:stop", "hpo:config", "hpo:digest", "hpo:report:1", "hpo:end", "hpo:losses")
KEYS += (
    "constraints",
    "hpo:sampler_state",
    "step",
    "metrics",
    "notes",
    "reason",
    "message",
    "type",
)
KEYS += ("study", "space", "fixed", "trainer", "sampler", "pruner", "budget", "output_dir", "low")


def make_study(folder: Path, sampler: str = "tpe") -> None:
    """Write a study with trials in every state: complete, pruned, failed, running and waiting."""
    url = f"sqlite:///{folder / 'hpo.db'}"
    spec = make_spec(
        folder,
        fixed={"max_steps": 3, "fail_above": 0.9},
        sampler={"type": sampler, "seed": 3},
        enqueue=[{"x": 0.5, "y": 1, "kind": "a"}, {"x": 0.95, "y": 1, "kind": "b"}],
    )
    study = Study(start(spec, url), TRIALS_ASKED)
    worker = Worker(study)
    for _ in range(4):
        claim = study.next_trial()
        assert claim is not None
        worker.train(claim.number, claim.config)
    waiting, running = study.next_trial(), study.next_trial()
    assert waiting is not None
    assert running is not None
    report = Report(running.number, 1, 1, {"eval_loss": 0.1}, [{"step": 1, "loss": 1.0}])
    study.store.write(running.number, 1, [report], True, _save)
    trial_log.append(study.store.trial_folder(running.number), report, "goes on")
    study.report(running.number, report)
    study.release(waiting.number)
    assert study._lock is not None
    study.record.database.close()
    study._lock.release()  # as if it was killed: the running trial stays so
    with contextlib.closing(sqlite3.connect(folder / "hpo.db")) as database:
        states = {state for (state,) in database.execute("SELECT state FROM trials")}
        assert states == {"COMPLETE", "FAIL", "PRUNED", "RUNNING", "WAITING"}, states
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("PRAGMA journal_mode=DELETE")


def _save(folder: Path) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "weight.json").write_text("0.1")
    (folder / "state").mkdir()
    (folder / "state" / "state.json").write_text('{"step": 1, "weight": 0.1, "validations": 1}')


class Stored:
    """A study that was stored whole, and is copied to be spoilt."""

    def __init__(self, folder: Path) -> None:
        self._made = folder / self.name
        self._made.mkdir()
        make_study(self._made)

    name = "stored"
    weight = 2

    def _copy(self, folder: Path) -> None:
        shutil.copytree(self._made, folder, dirs_exist_ok=True)
        with contextlib.closing(sqlite3.connect(folder / "hpo.db")) as database, database:
            database.execute(
                "UPDATE study_system_attributes SET value_json = replace(value_json, ?, ?)",
                (str(self._made), str(folder)),
            )

    def _reading(self, folder: Path, rng: random.Random) -> tuple[str, Callable[[], object]]:
        """Return one of the ways in which a study is read."""
        if rng.random() < 0.5:
            verb = rng.choice(VERBS)
            return " ".join(verb), lambda: _command(folder, *verb)
        return "resume", lambda: _resume(folder)


class Rows(Stored):
    """Values of the database's rows."""

    name = "rows"
    weight = 3

    def attempt(self, folder: Path, rng: random.Random) -> Attempt:
        self._copy(folder)
        with contextlib.closing(sqlite3.connect(folder / "hpo.db")) as database, database:
            what = _spoil_row(database, rng)
        name, action = self._reading(folder, rng)
        return Attempt(action, what.encode("utf-8", "replace"), f"{name}: {what:.200}", (HpoError,))


class DatabaseFiles(Stored):
    """The bytes of the database's file."""

    name = "database"
    weight = 1

    def attempt(self, folder: Path, rng: random.Random) -> Attempt:
        self._copy(folder)
        path = folder / "hpo.db"
        content = path.read_bytes()
        if rng.random() < 0.3:
            content = content[: rng.randrange(len(content))]
        for _ in range(rng.choice((0, 1, 10, 300))):
            at = rng.randrange(len(content) or 1)
            content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        path.write_bytes(content)
        name, action = self._reading(folder, rng)
        return Attempt(action, content, name, (HpoError,))


class Checkpoints(Stored):
    """Manifests, histories, states, logs and results, some of them with a fitting checksum."""

    name = "checkpoints"
    weight = 1

    def attempt(self, folder: Path, rng: random.Random) -> Attempt:
        self._copy(folder)
        runs = folder / "runs" / "s"
        files = sorted(path for path in runs.rglob("*") if path.is_file())
        path = rng.choice([path for path in files if path.suffix in (".json", ".jsonl", ".yaml")])
        mutator = Mutator(rng)
        old = path.read_bytes()
        try:
            values = json.loads(old)
            content = json.dumps(mutator.tree(values, KEYS)).encode("utf-8", "surrogatepass")
        except ValueError:
            content = mutator.bytes(old)
        if rng.random() < 0.2:
            content = mutator.bytes(old)
        path.write_bytes(content)
        if rng.random() < 0.1 and path.suffix == ".json":
            path.unlink()
            path.mkdir()
        elif path.name == HISTORY:  # the trainer's own files are torn only: it wrote the rest
            _sign(path, runs)
        name, action = self._reading(folder, rng)
        where = path.relative_to(runs)
        return Attempt(action, content, f"{name}: {where}", (HpoError,))


def _sign(path: Path, runs: Path) -> None:
    """Make a checkpoint's checksum fit what is there now."""
    for parent in path.parents:
        manifest = parent / MANIFEST
        if parent == runs:
            return
        if manifest.exists():
            values = json.loads(manifest.read_text())
            values["files"][path.relative_to(parent).as_posix()] = checksum(path).model_dump()
            manifest.write_text(json.dumps(values))
            return


def _spoil_row(database: sqlite3.Connection, rng: random.Random) -> str:
    """Change one row; return what was done."""
    mutator = Mutator(rng)
    if rng.random() < 0.55:
        table, column = rng.choice(sorted(JSON_COLUMNS.items()))
        key = {"trial_params": "param_name"}.get(table, "key")
        rows = database.execute(f"SELECT rowid, {key}, {column} FROM {table}").fetchall()
        rowid, name, text = rng.choice(rows)
        if table == "study_system_attributes" and rng.random() < 0.8:
            rowid, name, text = next(row for row in rows if row[1] == "hpo:spec")
        value = mutator.tree(json.loads(text), KEYS)
        with contextlib.suppress(ValueError):
            text = json.dumps(value)
        if rng.random() < 0.1:
            text = mutator.bytes(text.encode()).decode("utf-8", "replace")
        database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (text, rowid))
        return f"{table}.{name} = {text}"
    tables = [
        row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
    ]
    table = rng.choice(tables)
    columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    column = rng.choice(columns)
    kind = rng.random()
    if kind < 0.1:
        database.execute(f"DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})")
        return f"{table}: newest row deleted"
    if kind < 0.15:
        database.execute(f"DELETE FROM {table}")
        return f"{table}: all rows deleted"
    if kind < 0.18:
        database.execute(f"DROP TABLE {table}")
        return f"{table}: dropped"
    choices = (None, 0, 1, -1, 10**12, 1.5, "x", "", "NaN", "[]", b"\xff", "RUNNING", "COMPLETE")
    choices += (
        "FINITE",
        "NAN",
        "INF_POS",
        "2026-01-01 00:00:00.000000",
        99,
        "hpo:spec",
        "constraints",
    )
    value = rng.choice(choices)
    with contextlib.suppress(sqlite3.Error):
        where = rng.choice(("", f" WHERE rowid = (SELECT max(rowid) FROM {table})"))
        database.execute(f"UPDATE OR REPLACE {table} SET {column} = ?{where}", (value,))
        return f"{table}.{column} = {value!r}{where}"
    return "nothing: the database refuses it"


def _command(folder: Path, *arguments: str) -> None:
    """Run one verb in this process; what a user would see as a traceback is raised."""
    done = hpo_here(folder, *arguments, "--storage", "sqlite:///hpo.db", debug=True)
    assert done.code in (0, 1, 2), done


def _train(worker: Worker, claim: Claim) -> None:
    try:
        worker.train(claim.number, claim.config)
    except ValueError as error:  # of the trainer, which is told on by its host
        raise TrainerError(str(error)) from error


def _resume(folder: Path) -> None:
    """Go on with the study as a driver does, for two trials."""
    record = open_study("s", f"sqlite:///{folder / 'hpo.db'}")
    try:
        study = Study(record, TRIALS_ASKED)
        try:
            worker = Worker(study)
            for _ in range(2):
                claim = study.next_trial()
                if claim is not None:
                    _train(worker, claim)
            study.close()
        finally:
            if study._lock is not None:
                study._lock.release()
    finally:
        record.database.close()
