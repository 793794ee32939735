"""Drivers that are asked to leave by a signal; checked from the database and the disk."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.integration.command import (
    begin,
    hpo,
    journal,
    newest_steps,
    trained,
    trials_of,
    wait_until,
    write_study,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_every_trial_and_leaves_without_orphans(tmp_path: Path, name: str) -> None:
    write_study(tmp_path, fixed={"step_s": 0.15, "max_steps": 40, "eval_steps": 10})
    process = begin(tmp_path, "run", "study.yaml", "--trials", "3")
    wait_until(lambda: len(journal(tmp_path)) > 6, "six steps are trained")
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(getattr(signal, name))
    assert process.wait(timeout=60) == 130
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "no process is left behind"
    trials = trials_of(tmp_path)
    assert {t["state"] for t in trials} == {"WAITING"}
    last = {number: steps[-1] for number, steps in trained(tmp_path, 0).items()}
    assert newest_steps(tmp_path) == last, "saved at its very last step, between two validations"
    lines = len(journal(tmp_path))
    assert hpo(tmp_path, "resume", "s").code == 0
    for number, steps in trained(tmp_path, lines).items():
        assert steps[0] == last.get(number, 0) + 1
    assert {t["state"] for t in trials_of(tmp_path)} <= {"COMPLETE", "PRUNED"}
