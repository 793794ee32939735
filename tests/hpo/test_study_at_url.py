"""A study whose files lie at a URL: run, interrupted, gone on with from another machine, looked at."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hpo import faults, trial_log
from hpo.checkpoints import CheckpointStore
from hpo.cli.app import app
from hpo.errors import CheckpointError, HpoError
from hpo.progress import RunProgress
from hpo.result import read_best, write_best
from hpo.studies import open_study
from hpo.study import Study
from tests.hpo.store_places import Hand, address_of
from tests.one_worker import Worker, make_spec, sqlite, start
from trainers.protocol import Report


@pytest.fixture(autouse=True)
def _first_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "first"))
    yield
    faults.arm("")


@pytest.fixture(params=["folder", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> str:
    return address_of(request.param, tmp_path, s3)


class Logged(Study):
    """A study whose progress is watched, as a driver's is."""

    watched: RunProgress

    def report(self, number: int, report: Report) -> bool:
        over = super().report(number, report)
        if number in self.claimed or over:
            self.watched.reported(number, report, over)
        return over


def work(tmp_path: Path, num_trials: int) -> None:
    """Train a study's trials, and leave as a driver does."""
    study = Logged(open_study("s", sqlite(tmp_path)), num_trials)
    study.watched = RunProgress(study, Console(file=io.StringIO()))
    Worker(study).work()
    study.watched.close()


def hpo(tmp_path: Path, *args: str) -> str:
    result = CliRunner().invoke(app, [*args, "--storage", sqlite(tmp_path)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_it_is_gone_on_with_and_looked_at_from_another_machine(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = address_of("s3", tmp_path, s3)
    spec = make_spec(tmp_path, output_dir=output, pruner={"type": "none"}, fixed={"max_steps": 4})
    start(spec, sqlite(tmp_path))
    work(tmp_path, 2)
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "second"))
    assert len(json.loads(hpo(tmp_path, "logs", "s", "1", "--json"))) == 8, "4 steps, 4 validations"
    work(tmp_path, 3)
    record = open_study("s", sqlite(tmp_path))
    best = record.best()
    assert [t.state for t in record.trials()] == ["COMPLETE"] * 3
    assert json.loads(hpo(tmp_path, "best", "s", "--json"))["number"] == best.number
    assert "endpoint_override" not in hpo(tmp_path, "best", "s")
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "third"))
    for trial in range(3):
        lines = json.loads(hpo(tmp_path, "logs", "s", str(trial), "--json"))
        assert [x["step"] for x in lines if x["kind"] == "step"] == [1, 2, 3, 4]
    hpo(tmp_path, "export", "s", "--out", "exported")
    assert json.loads((tmp_path / "exported" / "trial.json").read_text())["number"] == best.number
    names = set(Hand.at(output).files())
    assert {"s/best/trial.json", "s/best/config.yaml", "s/best/adapter/weight.json"} <= names
    pictures = hpo(tmp_path, "plot", "s", "--out", "pictures").split()
    assert len(pictures) == 5
    hpo(tmp_path, "delete", "s", "--yes")
    assert Hand.at(output).files() == {}


def test_a_log_that_another_machine_went_on_with_is_not_overwritten(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = address_of("s3", tmp_path, s3)

    def report(validation: int) -> Report:
        return Report(0, validation, validation, {"a": 1.0}, [{"step": validation}])

    for machine, validations in (("first", (1, 2)), ("second", (3,)), ("first", (4,))):
        monkeypatch.setenv("HPO_CACHE", str(tmp_path / machine))
        store = CheckpointStore(address)
        for validation in validations:
            trial_log.append(store.trial_folder(0), report(validation), "goes on")
            store.push(0)
        store.flush()
    found = trial_log.read(CheckpointStore(address).log_folder(0))
    assert [x["step"] for x in found if x["kind"] == "step"] == [1, 2, 3, 4]


@pytest.mark.parametrize("point", ["best copied", "best moved", "best written"])
def test_a_result_that_could_not_be_finished_is_whole_or_visibly_not_and_made_anew(
    tmp_path: Path, output: str, point: str
) -> None:
    spec = make_spec(tmp_path, output_dir=output, pruner={"type": "none"}, keep_checkpoints=9)
    start(spec, sqlite(tmp_path))
    work(tmp_path, 2)
    record = open_study("s", sqlite(tmp_path))
    store = CheckpointStore.of_study(output, "s")
    first = record.best()
    other = next(t for t in record.trials() if t.number != first.number)
    faults.arm(f"{point}=disk_full")
    with pytest.raises(HpoError, match=r"(?s)best: .*hpo resume"):
        write_best(store, spec, other)
    faults.arm("")
    number = read_best(store).get("number")
    if number is not None:  # as it says it is
        at = next(t for t in record.trials() if t.number == number)
        weight = store.at_step(number, at.best_step).adapter / "weight.json"
        assert Hand.at(output).files()["s/best/adapter/weight.json"] == weight.read_bytes()
    assert write_best(store, spec, other)
    assert read_best(store)["number"] == other.number
    assert not [name for name in Hand.at(output).files() if "/.best" in name]


def test_a_study_in_a_bucket_that_is_not_there_is_one_message_and_nothing_is_stored(
    tmp_path: Path, s3: str
) -> None:
    spec = make_spec(tmp_path, output_dir=f"s3://nobucket/runs{s3}")
    with pytest.raises(CheckpointError, match="There is no such bucket"):
        Study(start(spec, sqlite(tmp_path)), 1)
    with pytest.raises(HpoError, match="there is no study"):
        open_study("s", sqlite(tmp_path))
