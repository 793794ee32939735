"""`hpo train`: one config, its metric, its checkpoints, and what is seen of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hpo import trial_log
from hpo.config_file import ConfigFile, read_config_file
from hpo.errors import SpecError
from hpo.single import InterruptedTrainingError, _best, train_config
from hpo.trackers import TRACKERS, Kind
from tests.fake_trackers import recorded
from trainers.protocol import Report

HEAD = "trainer: tests.fake_trainer:FakeTrainer\noutput_dir: out\nmax_steps: 4\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(HEAD + text)
    return path


@pytest.mark.parametrize(
    ("text", "metric", "sign"),
    [
        ("", "eval_loss", 1.0),
        ("metric: score\n", "score", 1.0),
        ("metric: score\ndirection: maximize\n", "score", -1.0),
        ("metric_for_best_model: score\n", "score", -1.0),
        ("metric_for_best_model: score\ngreater_is_better: false\n", "score", 1.0),
        ("metric_for_best_model: loss\n", "eval_loss", 1.0),
        ("metric_for_best_model: score\nmetric: eval_loss\n", "eval_loss", 1.0),
        ("do_eval: false\n", None, 1.0),
    ],
)
def test_a_file_without_metric_goes_by_the_sensible_one(
    tmp_path: Path, text: str, metric: str | None, sign: float
) -> None:
    found = read_config_file(write(tmp_path, text))
    assert (found.metric, found.sign) == (metric, sign)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metric: scor\n", "Did you mean 'score'"),
        ("metric: eval_loss\ndo_eval: false\n", "Reported: epoch, train_loss"),
        ("report_to: neptune\n", "Known: tensorboard, wandb, mlflow, comet_ml, trackio"),
        ("run_name: 'a{zz}'\n", "unknown field {zz}"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_config_file(write(tmp_path, text))
    assert expected in str(caught.value)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_validation_whose_metric_is_no_number_is_not_the_best(
    tmp_path: Path, sign: float
) -> None:
    file = ConfigFile("lora", {}, tmp_path, "score", sign)
    history = [
        Report(0, i, i, {"score": value}) for i, value in enumerate([math.nan, 0.5, math.nan])
    ]
    assert _best(history, file).step == 1


def test_no_tracker_may_be_said_as_a_list(tmp_path: Path) -> None:
    assert read_config_file(write(tmp_path, "report_to: [none]\n")).report_to == ()


def test_what_is_missing_is_said_without_a_section_that_a_config_does_not_have(
    tmp_path: Path,
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train_file: a.jsonl\nlora_r: x\n")
    with pytest.raises(SpecError) as caught:
        read_config_file(path)
    assert "model_name_or_path: is missing; give it." in str(caught.value)
    assert "config.yaml:2:9: lora_r: " in str(caught.value)


def test_without_validation_it_still_checkpoints_and_hands_over(tmp_path: Path) -> None:
    result = train_config(read_config_file(write(tmp_path, "do_eval: false\n")), lambda text: None)
    assert set(result["metrics"]) == {"train_loss", "epoch"}
    out = tmp_path / "out"
    assert (out / "adapter" / "weight.json").exists()
    again = (out / "config.yaml").read_text()
    assert "metric:" not in again
    last = max(int(path.name) for path in next(out.glob("checkpoints-*/0")).glob("[0-9]*"))
    assert result["step"] == last


def test_stopped_and_gone_on_with_the_run_in_the_tracker_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = Kind("tests.fake_trackers:Recorder", "json", "json")
    monkeypatch.setitem(TRACKERS, "mlflow", kind)
    text = "report_to: mlflow\nrun_name: 'mine-x{x}'\nnote: look here\nanswers: true\n"
    file = read_config_file(write(tmp_path, text))
    said: list[str] = []
    with pytest.raises(InterruptedTrainingError):
        train_config(file, said.append, lambda: True)
    train_config(file, said.append)
    found = recorded(tmp_path / "out")
    points = [line for line in found if line["what"] == "point"]
    assert [point["step"] for point in points] == [1, 2, 3, 4]
    opened = [line for line in found if line["what"] == "open"]
    assert [line["name"] for line in opened] == ["mine-x0.5"] * 2
    assert len({line["key"] for line in opened}) == 1
    assert found[-1]["state"] == "COMPLETE"
    assert said.count("note: look here") == 1
    (folder,) = (tmp_path / "out").glob("checkpoints-*/0")
    assert [x["validation"] for x in trial_log.read_samples(folder)] == [1, 2, 3, 4]
    assert json.loads((folder / "4" / "history.json").read_text())[0]["notes"] == ["look here"]
