"""Drivers that are killed, stopped and asked to leave; checked from the database and the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo import trial_log
from tests.integration.command import (
    begin,
    hpo,
    journal,
    kill_group,
    newest_steps,
    trained,
    trials_of,
    wait_until,
    write_study,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SLOW = {"step_s": 0.15, "max_steps": 12}


def check_all_done(folder: Path, num_trials: int) -> None:
    trials = trials_of(folder)
    assert [t["number"] for t in trials] == list(range(num_trials))
    assert {t["state"] for t in trials} <= {"COMPLETE", "PRUNED"}
    assert len({str(t["params"]) for t in trials}) == num_trials
    for trial in trials:
        steps = [v["step"] for v in trial["validations"]]
        assert steps == list(range(1, len(steps) + 1)), "every report stands, none twice"


def test_killed_in_mid_search_nothing_is_lost_and_nothing_trained_twice(tmp_path: Path) -> None:
    write_study(tmp_path, fixed=SLOW, report_to="tensorboard")
    process = begin(tmp_path, "run", "study.yaml", "--trials", "6")
    wait_until(lambda: len(journal(tmp_path)) > 20, "twenty steps are trained")
    kill_group(process)
    before = trials_of(tmp_path)
    saved = newest_steps(tmp_path)
    unfinished = [t["number"] for t in before if t["state"] == "RUNNING"]
    assert unfinished, "the kill came in the middle"
    lines = len(journal(tmp_path))
    result = hpo(tmp_path, "resume", "s")
    assert result.code == 0, result.err
    check_all_done(tmp_path, 6)
    after = trials_of(tmp_path)
    again = trained(tmp_path, lines)
    for trial in before:
        number = trial["number"]
        if number in unfinished:
            assert after[number]["validations"][: len(trial["validations"])] == trial["validations"]
            steps = again.get(number, [])
            assert all(step > saved.get(number, 0) for step in steps)
            assert len(steps) == len(set(steps))
        else:
            assert after[number] == trial, "finished trials stand"
            assert number not in again
    for trial in after:
        every_step = list(range(1, len(trial["validations"]) + 1))
        log = trial_log.read(tmp_path / "runs" / "s" / str(trial["number"]))
        assert [line["step"] for line in log if line["kind"] == "step"] == every_step
        assert [line["step"] for line in log if line["kind"] == "validation"] == every_step
        assert tracked_steps(tmp_path, trial["number"]) == every_step


def tracked_steps(folder: Path, number: int) -> list[int]:
    """Return the steps whose loss TensorBoard shows of a trial."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs" / "s" / "tensorboard" / f"s-{number}"))
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


def test_stop_from_another_terminal_saves_and_ends_with_0(tmp_path: Path) -> None:
    write_study(tmp_path, fixed=SLOW)
    process = begin(tmp_path, "run", "study.yaml", "--trials", "6")
    wait_until(lambda: len(journal(tmp_path)) > 6, "six steps are trained")
    result = hpo(tmp_path, "stop", "s")
    assert result.code == 0
    assert "it has left" in result.err
    assert process.wait(timeout=60) == 0
    assert "RUNNING" not in {t["state"] for t in trials_of(tmp_path)}
    assert hpo(tmp_path, "resume", "s").code == 0
    check_all_done(tmp_path, 6)


@pytest.mark.soak
@pytest.mark.parametrize("action", ["kill", "freeze", "hang"])
def test_a_host_that_fails_as_it_takes_a_trial_costs_one_loss(tmp_path: Path, action: str) -> None:
    """That faults reach the hosts of a driver is what the other tests of kills stand on."""
    write_study(tmp_path, stall_timeout=4, pruner={"type": "none"})
    env = {"HPO_FAULTS": f"joined={action}@2", "HPO_FAULTS_FOLDER": str(tmp_path)}
    result = hpo(tmp_path, "run", "study.yaml", "--trials", "3", env=env)
    assert result.code == 0, result.err
    assert (tmp_path / "joined").exists(), "it struck"
    assert "(loss 1 of 3)" in result.err
    assert "loss 2 of" not in result.err
    check_all_done(tmp_path, 3)


def test_while_a_driver_runs_a_second_one_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path, fixed=SLOW)
    process = begin(tmp_path, "run", "study.yaml", "--trials", "4")
    wait_until(lambda: len(journal(tmp_path)) > 2, "it trains")
    result = hpo(tmp_path, "resume", "s")
    kill_group(process)
    assert result.code == 2
    assert "being run by another process" in result.err


def test_the_hours_of_the_budget_end_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    write_study(tmp_path, fixed=SLOW, budget={"trials": 50, "hours": 0.006})
    result = hpo(tmp_path, "run", "study.yaml")
    assert result.code == 0, result.err
    assert "time budget" in result.err
    states = {t["state"] for t in trials_of(tmp_path)}
    assert "RUNNING" not in states
    assert len(trials_of(tmp_path)) < 50
