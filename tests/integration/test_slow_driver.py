"""Several drivers of one study on a server: one is stopped for longer than its lease, and continues."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from benchmarks.driver.postgres import Server
from tests.integration.command import begin, hpo, journal, wait_until, write_study

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.soak]

NUM_TRIALS = 10
NUM_STEPS = 60


def holds(log: Path) -> set[int]:
    """Return the trials that a driver says it trains."""
    began = re.findall(r"trial (\d+) (?:begins|goes on)", log.read_text())
    ended = re.findall(r"trial (\d+) step \d+.* -> ", log.read_text())
    return {int(number) for number in began} - {int(number) for number in ended}


def test_a_driver_that_was_only_slow_says_what_it_lost_and_goes_on_with_the_rest(
    tmp_path: Path, postgres: Server
) -> None:
    url = postgres.create("frozen")
    write_study(
        tmp_path,
        storage=url,
        lease_s=4,
        fixed={"step_s": 0.25, "max_steps": NUM_STEPS},
        pruner={"type": "none"},
        max_failures=0,
        resources={"gpu": 0.5},
    )
    first = begin(tmp_path, "run", "study.yaml", "--trials", str(NUM_TRIALS))
    wait_until(lambda: len({line["trial"] for line in journal(tmp_path)}) == 2, "two are trained")
    other = tmp_path / "other"
    other.mkdir()
    second = begin(other, "resume", str(tmp_path / "study.yaml"))
    said = tmp_path / "hpo.log"
    wait_until(lambda: " begins: " in (other / "hpo.log").read_text(), "the second has its own")
    wait_until(lambda: len(holds(said)) == 2, "the first one's places are taken")
    first.send_signal(signal.SIGSTOP)
    held = holds(said)
    assert held
    stopped_at = time.monotonic()
    wait_until(
        lambda: all(f"trial {n} goes on" in (other / "hpo.log").read_text() for n in held),
        "the second takes the first one's trials",
    )
    assert time.monotonic() - stopped_at > 3, "not before its lease ran out"
    first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=180) == 0, said.read_text()
    assert second.wait(timeout=180) == 0, (other / "hpo.log").read_text()
    trials = hpo(tmp_path, "status", "study.yaml", "--json").json()["trials"]
    assert [t["number"] for t in trials] == list(range(NUM_TRIALS))
    assert {t["state"] for t in trials} == {"COMPLETE"}
    for trial in trials:
        assert [v["step"] for v in trial["validations"]] == list(range(1, NUM_STEPS + 1))
    text = said.read_text()
    for number in held:
        assert text.count(f"trial {number} was taken over by another driver") == 1, text
    after = text[text.index("was taken over by another driver") :]
    assert re.search(r"trial \d+ (begins|goes on)", after), "it went on with others"
    # The frozen driver's host trains on until it misses its driver; that is all that is done twice.
    pids = {line["pid"] for line in journal(tmp_path) if line["trial"] in held}
    for number in held:
        steps = [
            line["step"]
            for line in journal(tmp_path)
            if line["what"] == "step" and line["trial"] == number
        ]
        assert len(pids) >= 2
        assert len(steps) - len(set(steps)) < NUM_STEPS
        assert max(steps) == NUM_STEPS
