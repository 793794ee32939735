"""Trials that fit on no device: how the study tells them, and what it learns of them."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from typer.testing import CliRunner

import hpo.study
from hpo.cli.app import app
from hpo.config_file import read_config_file
from hpo.errors import TrainerError
from hpo.mirror import Mirror
from hpo.single import train_config
from hpo.storage.attributes import CONSTRAINTS, INFEASIBLE
from hpo.studies import StudyRecord
from hpo.study import Study
from hpo.verdicts import Asha
from tests.one_worker import Worker, again, make_spec, sqlite, start

GROWS = {"x": 0.3, "memory": 2.0, "size": 0.0, "max_steps": 6}
SPACE = {
    "hidden_size": {"type": "float", "low": 0.0, "high": 4.0},
    "overfit": {"value": "-0.1 * hidden_size"},  # the larger, the better, but half do not fit
    "y": {"type": "int", "low": 1, "high": 1000},
}


def search(folder: Path, until: int, trials: int = 40, **changes: object) -> StudyRecord:
    """Search where trials run out of memory after so many steps."""
    document = {
        "fixed": {**GROWS, "hidden_until": until},
        "space": SPACE,
        "sampler": {"type": "tpe", "seed": 0},
        "pruner": {"type": "none"},
        **changes,
    }
    record = start(make_spec(folder, **document), sqlite(folder))
    Worker(Study(record, trials)).work()
    return record


def num_too_large(record: StudyRecord, first: int = 15) -> int:
    return sum(trial.params["hidden_size"] > 2.0 for trial in record.trials()[first:])


def test_it_is_pruned_with_a_constraint_and_others_have_none(tmp_path: Path) -> None:
    record = search(tmp_path, until=3, trials=12, pruner={"type": "asha"})
    reasons = {trial.reason for trial in record.trials()}
    assert reasons >= {"out_of_memory", "finished", "pruned"}
    stored = record.database.storage.get_all_trials(record.study_id)
    for trial, frozen in zip(record.trials(), stored, strict=True):
        is_full = trial.params["hidden_size"] > 2.0 and trial.reason != "pruned"
        assert (trial.reason == "out_of_memory") == is_full
        assert trial.state == ("COMPLETE" if trial.reason == "finished" else "PRUNED")
        assert any(value > 0 for value in frozen.constraints.values()) == is_full
        assert bool(frozen.constraints) == is_full, "Optuna's GP wants all complete ones alike"
        assert not is_full or frozen.value is None


@pytest.mark.parametrize(("until", "pruner"), [(0, "none"), (4, "asha")])
def test_the_sampler_avoids_where_trials_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: int, pruner: str
) -> None:
    changes = {"trials": 30, "pruner": {"type": pruner}}
    told = num_too_large(search(tmp_path / "told", until, **changes))
    if until == 0:  # without reports, a trial that merely failed is invisible to TPE
        monkeypatch.setitem(hpo.study.STATE_OF_END, "out_of_memory", TrialState.FAIL)
    else:  # with reports, one that is merely pruned looks good, and prunes its betters
        monkeypatch.setattr(hpo.study, "INFEASIBLE", [])
    ignored = num_too_large(search(tmp_path / "ignored", until, **changes))
    assert told <= ignored / 2, (told, ignored)


def test_resumed_after_every_few_trials_the_constraint_is_minded_alike(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", until=2, trials=20)
    parts = search(tmp_path / "parts", until=2, trials=5)
    for trials in (9, 14, 20):
        Worker(Study(again(parts.spec, sqlite(tmp_path / "parts")), trials)).work()
    assert [t.params for t in parts.trials()] == [t.params for t in whole.trials()]
    assert sum(t.reason == "out_of_memory" for t in whole.trials()) > 2


def test_it_is_never_the_best_though_it_reported_the_lowest_value(tmp_path: Path) -> None:
    record = search(tmp_path, until=5, trials=15)
    lowest = min(record.trials(), key=lambda trial: trial.value)
    assert lowest.reason == "out_of_memory"
    best = record.best()
    assert best.params["hidden_size"] <= 2.0
    handed = json.loads((Path(record.spec.output_dir) / "s/best/trial.json").read_text())
    assert handed["number"] == best.number


@pytest.mark.parametrize(("attrs", "stops"), [({}, True), ({CONSTRAINTS: INFEASIBLE}, False)])
def test_it_is_no_competitor_at_a_rung(attrs: dict[str, object], stops: bool) -> None:
    study = optuna.create_study()
    better = {"state": TrialState.PRUNED, "intermediate_values": {1: 0.1}, "system_attrs": attrs}
    for _ in range(3):
        study.add_trial(create_trial(**better))
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values={1: 0.5}))
    mirror = Mirror("s", study.direction)
    for trial in study.get_trials():
        mirror.put(trial, {})
    assert Asha().stops(mirror, mirror.trials[-1]) == stops


def test_people_read_why_in_words(tmp_path: Path) -> None:
    record = search(tmp_path, until=0, trials=2, fixed={**GROWS, "memory": -1.0})
    storage = ["--storage", record.database.url]
    runner = CliRunner()
    status = runner.invoke(app, ["status", "s", *storage], env={"COLUMNS": "160"}).output
    assert "PRUNED (out of memory)" in status
    assert "trial 0 out of memory: out of memory: " in status
    refused = runner.invoke(app, ["best", "s", *storage])
    assert "2 of its trials fitted on no device" in str(refused.output) + str(refused.exception)


def test_one_config_that_does_not_fit_is_an_error_with_its_reason(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("trainer: tests.fake_trainer:FakeTrainer\nmemory: 0.5\noutput_dir: out\n")
    with pytest.raises(TrainerError, match="ran out of memory at step 0: out of memory: 1 of 0"):
        train_config(read_config_file(config), lambda text: None)
