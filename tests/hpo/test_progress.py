"""What a run leaves behind to be looked at: logs, notes, samples, and news for the trackers."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hpo import trial_log
from hpo.cli.app import app
from hpo.errors import ExhaustedError
from hpo.progress import RunProgress
from hpo.study import Study
from hpo.trackers import TRACKERS, Kind
from tests.fake_trackers import recorded
from tests.fake_trainer import FakeTrainer
from tests.one_worker import again, make_spec, sqlite, start

NOTE = "3 of 100 examples were cut off at 256 tokens"


@pytest.fixture(autouse=True)
def _recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Kind("tests.fake_trackers:Recorder", "json", "json")
    monkeypatch.setitem(TRACKERS, "tensorboard", kind)


def run(study: Study, steps: int = 1000, flush_s: float = 10.0) -> str:
    """Train as hosts do, for so many steps, then be killed; return what the user saw."""
    screen = StringIO()
    progress = RunProgress(study, Console(file=screen, width=200))
    try:
        while steps > 0:
            claim = study.next_trial()
            assert claim is not None
            progress.began(claim)
            trainer = FakeTrainer({}, "cpu")
            checkpoint = study.store.newest(claim.number)
            history = list(checkpoint.history) if checkpoint else []
            trainer.add(claim.number, claim.config, checkpoint.folder if checkpoint else None)
            over = False
            while not over and steps > 0:
                for report in trainer.advance():
                    steps -= 1
                    history.append(report)
                    save = (claim.number, report.step, history, True)
                    study.store.write(
                        *save, lambda folder, t=trainer, c=claim: t.save(c.number, folder)
                    )
                    over = study.report(claim.number, report)
                    progress.reported(claim.number, report, over)
    except ExhaustedError:
        pass
    progress.close(flush_s)
    if study._lock is not None:
        study._lock.release()
    return screen.getvalue()


@pytest.fixture
def record(tmp_path: Path) -> object:
    spec = make_spec(
        tmp_path,
        report_to=["tensorboard"],
        fixed={"max_steps": 3, "note": NOTE, "answers": True},
        pruner={"type": "none"},
    )
    return start(spec, sqlite(tmp_path))


def test_killed_and_resumed_the_trackers_have_every_step_once_and_every_end(
    record: object, tmp_path: Path
) -> None:
    run(Study(record, 3), steps=5)
    run(Study(again(record.spec, sqlite(tmp_path)), 3))
    said = recorded(tmp_path / "runs" / "s")
    points = [(line["trial"], line["step"]) for line in said if line["what"] == "point"]
    assert sorted(points) == [(trial, step) for trial in range(3) for step in (1, 2, 3)]
    assert sorted(line["trial"] for line in said if line["what"] == "end") == [0, 1, 2]


def test_an_end_that_a_killed_driver_could_not_tell_is_told_by_the_next(
    record: object, tmp_path: Path
) -> None:
    run(Study(record, 1), flush_s=0.0)
    folder = tmp_path / "runs" / "s"
    for path in (folder / "trackers" / "tensorboard").glob("*.json"):
        path.unlink()
    (folder / "recorded.jsonl").unlink(missing_ok=True)
    run(Study(again(record.spec, sqlite(tmp_path)), 1))
    assert [line["what"] for line in recorded(folder)] == ["open", *["point"] * 3, "end"]


def test_a_note_is_said_once_and_kept_through_kill_and_resume(
    record: object, tmp_path: Path
) -> None:
    first = run(Study(record, 2), steps=2)
    second = run(Study(again(record.spec, sqlite(tmp_path)), 2))
    assert first.count(NOTE) == second.count(NOTE) == 1
    folder = tmp_path / "runs" / "s"
    for number in (0, 1):
        notes = [x for x in trial_log.read(folder / str(number)) if x["kind"] == "note"]
        assert [note["text"] for note in notes] == [NOTE]
    trials = again(record.spec, sqlite(tmp_path)).trials()
    assert [trial.notes for trial in trials] == [(NOTE,), (NOTE,)]
    assert json.loads((folder / "best" / "trial.json").read_text())["notes"] == [NOTE]
    storage = ["--storage", sqlite(tmp_path)]
    status = CliRunner().invoke(app, ["status", "s", "--json", *storage])
    assert [t["notes"] for t in json.loads(status.stdout)["trials"]] == [[NOTE], [NOTE]]


def test_what_only_checkpoints_have_reaches_the_log_and_the_trackers(
    record: object, tmp_path: Path
) -> None:
    study = Study(record, 1)
    claim = study.next_trial()
    trainer = FakeTrainer({}, "cpu")
    trainer.add(0, claim.config)
    history = []
    for step in (1, 2):
        history += trainer.advance()
        study.store.write(0, step, history, True, lambda folder: trainer.save(0, folder))
    study._lock.release()  # killed before the reports arrived
    run(Study(again(record.spec, sqlite(tmp_path)), 1))
    assert again(record.spec, sqlite(tmp_path)).trials()[0].notes == (NOTE,)
    log = trial_log.read(tmp_path / "runs" / "s" / "0")
    assert [line["step"] for line in log if line["kind"] == "step"] == [1, 2, 3]
    assert [line["step"] for line in log if line["kind"] == "validation"] == [1, 2, 3]
    assert [line["text"] for line in log if line["kind"] == "note"] == [NOTE]
    samples = trial_log.read_samples(tmp_path / "runs" / "s" / "0")
    assert [sample["validation"] for sample in samples] == [1, 2, 3]
    points = [x for x in recorded(tmp_path / "runs" / "s") if x["what"] == "point"]
    assert [point["step"] for point in points] == [1, 2, 3]


def test_samples_are_kept_per_validation_and_shown(record: object, tmp_path: Path) -> None:
    run(Study(record, 1), steps=2)
    run(Study(again(record.spec, sqlite(tmp_path)), 1))
    found = trial_log.read_samples(tmp_path / "runs" / "s" / "0")
    assert [(x["validation"], x["step"], x["prompt"]) for x in found] == [
        (index, index, "2 + 2 =") for index in (1, 2, 3)
    ]
    arguments = ["logs", "s", "0", "--samples", "--storage", sqlite(tmp_path)]
    table = CliRunner().invoke(app, arguments).stdout
    assert table.count("2 + 2 =") == 1
    assert all(str(x["generated"]) in table for x in found)
    one = CliRunner().invoke(app, [*arguments, "--validation", "2", "--json"])
    assert [x["validation"] for x in json.loads(one.stdout)] == [2]
    assert CliRunner().invoke(app, [*arguments, "--validation", "9"]).exit_code != 0


def test_samples_of_a_validation_that_is_done_again_are_replaced(tmp_path: Path) -> None:
    from trainers.protocol import Report

    for mark in ("a", "b"):
        for index in (1, 2):
            sample = {"prompt": "p", "generated": f"{mark}{index}\u2028x"}
            report = Report(0, index, index, {"eval_loss": 1.0}, [{"step": index}], [sample])
            if mark == "a" or index == 2:
                trial_log.append(tmp_path, report, "goes on")
    texts = [x["generated"] for x in trial_log.read_samples(tmp_path)]
    assert texts == ["a1\u2028x", "b2\u2028x"]
