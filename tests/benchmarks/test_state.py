"""A study of 10,000 trials with 10 reports each stays small and quick.

By processor time, with margins: other tests run beside this one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.command import environment


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """Return the figures of a process of its own: memory is measured there."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.driver.state"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_driver_grows_by_less_than_50_kib_a_trial(figures: dict[str, Any]) -> None:
    assert figures["num_trials"] == 10_000
    assert figures["num_reports"] == 100_000
    assert 0.5 < figures["memory_kib_per_trial"] < 50


def test_a_report_with_its_verdict_costs_the_same_in_a_hundred_times_larger_study(
    figures: dict[str, Any],
) -> None:
    assert figures["report_ms"]["cpu"] < 3
    assert figures["report_ms"]["cpu"] < 2 * figures["report_small_ms"]["cpu"]


def test_a_resumed_study_may_go_on_within_10_s(figures: dict[str, Any]) -> None:
    assert figures["resume_s"]["cpu"] < 10


def test_status_takes_2_s_of_one_core(figures: dict[str, Any]) -> None:
    assert figures["status_s"]["cpu"] < 2 * 1.5, "a busy core is slower; 1.5 s on a quiet machine"
