"""The driver's side of the trackers: nothing that a tracker does costs a trial anything."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hpo import trial_log
from hpo.errors import SpecError
from hpo.trackers import TRACKERS, Kind, check_installed, chosen, installed
from hpo.trackers.outlet import Outlets, run_name
from hpo.trackers.tracker import Ending
from tests.fake_trackers import recorded
from trainers.protocol import Report

END = Ending("COMPLETE", "finished", None, 0.25)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr("hpo.trackers.outlet.FLUSH_S", 0.5)

    def become(name: str) -> None:
        kind = Kind(f"tests.fake_trackers:{name}", "json", "json")
        monkeypatch.setitem(TRACKERS, "wandb", kind)

    return become


def outlets(folder: Path) -> Outlets:
    return Outlets(["wandb"], folder, "s", "eval_loss", "{study}-{number}-x{x}")


def train(folder: Path, number: int, first: int, last: int, end: str | None = None) -> None:
    lines = [{"step": s, "loss": 1 / s, "note": "no number"} for s in range(first, last + 1)]
    report = Report(number, last, last, {"eval_loss": 2 / last, "score": 1.0}, lines, end=end)
    trial_log.append(folder / str(number), report, end or "goes on")


def tell(opened: Outlets, folder: Path, number: int, ending: Ending | None = None) -> None:
    opened.tell(number, {"x": number}, folder / str(number), ending)


def test_a_resumed_study_goes_on_with_the_same_runs_and_repeats_no_step(
    tmp_path: Path, fake: object
) -> None:
    fake("Recorder")
    first = outlets(tmp_path)
    train(tmp_path, 0, 1, 3, "finished")
    train(tmp_path, 1, 1, 2)
    tell(first, tmp_path, 0, END)
    tell(first, tmp_path, 1)
    assert first.close(10.0) == ["wandb: over there"]
    second = outlets(tmp_path)
    train(tmp_path, 1, 3, 5, "finished")
    tell(second, tmp_path, 0, END)
    tell(second, tmp_path, 1, END)
    second.close(10.0)
    said = recorded(tmp_path)
    points = [(line["trial"], line["step"]) for line in said if line["what"] == "point"]
    assert points == [(0, 1), (0, 2), (0, 3), *((1, step) for step in range(1, 6))]
    assert [line["trial"] for line in said if line["what"] == "end"] == [0, 1]
    opened = [line for line in said if line["what"] == "open" and line["trial"] == 1]
    assert [line["last_step"] for line in opened] == [None, 2]
    assert len({line["key"] for line in opened}) == 1
    assert opened[0]["name"] == "s-1-x1"
    assert opened[0]["config"] == {"x": 1}
    whole = next(line for line in said if line.get("step") == 3)
    values = {"train/loss": 1 / 3, "eval/loss": 2 / 3, "eval/score": 1.0}
    assert values.items() <= whole.items()
    assert "train/note" not in whole
    ended = next(line for line in said if line["what"] == "end")
    assert (ended["state"], ended["reason"], ended["best/eval_loss"]) == (
        "COMPLETE",
        "finished",
        0.25,
    )


def test_steps_that_are_trained_again_are_not_logged_again(tmp_path: Path, fake: object) -> None:
    fake("Recorder")
    for _ in range(2):
        opened = outlets(tmp_path)
        train(tmp_path, 0, 1, 3)
        tell(opened, tmp_path, 0)
        opened.close(10.0)
    said = recorded(tmp_path)
    assert [line["step"] for line in said if line["what"] == "point"] == [1, 2, 3]


def test_another_study_of_the_same_name_has_other_runs(tmp_path: Path, fake: object) -> None:
    fake("Recorder")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        opened = outlets(tmp_path / name)
        tell(opened, tmp_path / name, 0)
        opened.close(10.0)
    keys = [recorded(tmp_path / name)[0]["key"] for name in ("a", "b")]
    assert keys[0] != keys[1]
    assert all(str(key).startswith("s-0-") for key in keys)


def test_a_tracker_that_hangs_delays_nothing_and_is_said_once(tmp_path: Path, fake: object) -> None:
    fake("Hanging")
    started = time.monotonic()
    opened = outlets(tmp_path)
    for turn in range(2000):  # more than a pipe holds
        opened.tell(turn % 50, {"x": "y" * 5000}, tmp_path / "0")
    assert time.monotonic() - started < 2.0
    process = opened._outlets[0]._process
    said = opened.close(0.5)
    assert time.monotonic() - started < 6.0
    assert len(said) == 1
    assert "wandb" in said[0]
    assert process.poll() is not None


def test_a_tracker_that_hangs_does_not_outlive_a_driver_that_is_killed(
    tmp_path: Path, fake: object
) -> None:
    fake("Hanging")
    opened = outlets(tmp_path)
    process = opened._outlets[0]._process
    tell(opened, tmp_path, 0)
    opened._outlets[0].finish()  # what the end of the driver does, too: stdin closes
    assert process.wait(10.0) != 0


def test_a_tracker_that_fails_is_said_once_without_its_key_and_catches_up(
    tmp_path: Path, fake: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("Recorder")
    monkeypatch.setenv("FAKE_API_KEY", "topsecret123")
    (tmp_path / "broken").touch()
    opened = outlets(tmp_path)
    train(tmp_path, 0, 1, 2)
    tell(opened, tmp_path, 0)
    said: list[str] = []
    deadline = time.monotonic() + 10
    while not said and time.monotonic() < deadline:
        said += opened.heard()
        time.sleep(0.01)
    (tmp_path / "broken").unlink()
    train(tmp_path, 0, 3, 4, "finished")
    tell(opened, tmp_path, 0, END)
    said += opened.close(10.0)
    warnings = [text for text in said if text.startswith("warning")]
    assert len(warnings) == 1
    assert "no network" in warnings[0]
    assert "topsecret123" not in warnings[0]
    steps = [line["step"] for line in recorded(tmp_path) if line["what"] == "point"]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize(("name", "reason"), [("Dying", "died"), ("Broken", "log in first")])
def test_a_tracker_that_cannot_live_is_one_warning(
    tmp_path: Path, fake: object, name: str, reason: str
) -> None:
    fake(name)
    opened = outlets(tmp_path)
    for number in range(3):
        tell(opened, tmp_path, number)
    said = opened.close(10.0)
    assert len(said) == 1
    assert reason in said[0]
    assert "hunter2" not in said[0]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, fake: object) -> None:
    fake("Recorder")
    (tmp_path / "file").touch()
    opened = outlets(tmp_path / "file")
    tell(opened, tmp_path / "file", 0)
    assert len([text for text in opened.close(10.0) if text.startswith("warning")]) == 1


def test_a_missing_package_is_said_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(TRACKERS, "mlflow", Kind("x:y", "no_such_module", "mlflow-skinny"))
    with pytest.raises(SpecError, match="pip install mlflow-skinny"):
        check_installed(["tensorboard", "mlflow"])
    assert "mlflow" not in installed()
    assert chosen(["all"]) == installed()
    check_installed(["all"])


def test_a_name_never_ends_a_trial() -> None:
    assert run_name("{study}-{number:03d}", "s", 7, {}) == "s-007"
    assert run_name("{lr:.1e}-{number}", "s", 7, {"lr": 1e-4}) == "1.0e-04-7"
    assert run_name("{r}-{number}", "s", 7, {}) == "-7"
    assert run_name("{lr:.1e}-{number}", "s", 7, {"lr": "auto"}) == "s-7"


def test_no_tracker_is_no_process(tmp_path: Path) -> None:
    opened = Outlets([], tmp_path, "s", "eval_loss", "{study}-{number}")
    opened.tell(0, {}, tmp_path)
    assert opened.close() == []
    assert os.listdir(tmp_path) == []
