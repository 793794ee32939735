"""A study of 10,000 trials with 10 reports each stays small and quick, with wide margins."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.integration.command import environment


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    """Return the figures of a process of its own: memory is measured there."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.state"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_driver_grows_by_less_than_50_kib_a_trial(figures: dict[str, float]) -> None:
    assert figures["num_trials"] == 10_000
    assert figures["num_reports"] == 100_000
    assert 0.5 < figures["memory_kib_per_trial"] < 50


def test_a_report_with_its_verdict_costs_the_same_in_a_hundred_times_larger_study(
    figures: dict[str, float],
) -> None:
    assert figures["report_ms"] < 3
    assert figures["report_ms"] < 3 * figures["report_small_ms"]


def test_a_resumed_study_may_go_on_within_10_s(figures: dict[str, float]) -> None:
    assert figures["resume_s"] < 10


def test_status_is_shown_within_2_s_and_what_the_machine_adds(figures: dict[str, float]) -> None:
    assert figures["status_s"] < 6, "under 2 s on a quiet machine; another test runs beside it here"
