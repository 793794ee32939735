"""kill -9 at every point, in a real `hpo run`: in the driver, or in a host below it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hpo import faults
from tests.integration.command import begin, hpo, kill_group, write_study
from tests.kills.audit import Journal, audit, opened

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.soak]

NUM_TRIALS = 5
UNREACHED = {"checkpoint moved"}  # needs a torn checkpoint: see test_matrix
CROWDED = {"max_steps": 9, "memory": 2.5, "hidden_size": 0.4, "hidden_until": 3, "overfit": 0.02}
"""Two trials begin on the device, and one makes room when both have made some steps."""


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("point", [point for point in faults.POINTS if point not in UNREACHED])
def test_killed_and_gone_on_with(
    tmp_path: Path, point: str, times: int, record_property: Callable[[str, object], None]
) -> None:
    struck = tmp_path / "struck"
    struck.mkdir()
    write_study(tmp_path, fixed=CROWDED, max_failures=1000)
    env = {faults.VARIABLE: f"{point}=kill@{times}", faults.FOLDER: str(struck)}
    process = begin(tmp_path, "run", "study.yaml", "--trials", str(NUM_TRIALS), env=env)
    try:
        code = process.wait(180)
    finally:
        with contextlib.suppress(ProcessLookupError):  # all of them are gone already
            kill_group(process)
    if point.startswith("best") and times > 1 and not any(struck.iterdir()):
        pytest.skip("no second trial was the best one")
    assert [path.name for path in struck.iterdir()] == [point.replace(" ", "-")]
    record_property("kills", 1)
    assert code in (0, -signal.SIGKILL), (tmp_path / "hpo.log").read_text()[-2000:]
    url, runs = f"sqlite:///{tmp_path / 'hpo.db'}", tmp_path / "runs" / "s"
    journal = Journal(tmp_path / "journal.jsonl")
    journal.check()
    with opened("s", url) as record:
        journal.note_kill(runs, record)
    for path in (*runs.glob(".*"), *runs.glob("*/.*")):
        os.utime(path, (0.0, 0.0))
    resumed = hpo(tmp_path, "resume", "s", "--trials", str(NUM_TRIALS))
    assert resumed.code == 0, resumed.err
    journal.check()
    with opened("s", url) as record:
        assert audit(record, runs, NUM_TRIALS).all == []
    assert journal.trained_again == []
