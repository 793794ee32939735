"""What the driver costs: ratios with wide margins, by processor time, as other tests run beside this."""

from __future__ import annotations

import statistics
import time

import pytest

from benchmarks.driver.searches import Event
from benchmarks.driver.study_costs import Costs, costs
from benchmarks.driver.turnover import gaps

SMALL, LARGE = 100, 2_000
REPETITIONS = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Costs]:
    """Return the processor time that each act takes with so many trials stored, with TPE."""
    by_size = {}
    for size in (SMALL, LARGE):
        folder = tmp_path_factory.mktemp(f"stored-{size}")
        url = f"sqlite:///{folder / 'hpo.db'}"
        by_size[size] = costs(folder, url, "tpe", size, REPETITIONS, clock=time.process_time)
    return by_size


@pytest.mark.parametrize("act", ["report", "tell"])
def test_an_act_costs_the_same_in_a_twenty_times_larger_study(
    found: dict[int, Costs], act: str
) -> None:
    small, large = (statistics.median(getattr(found[size], act)) for size in (SMALL, LARGE))
    assert large < 3 * small


def test_a_report_with_its_verdict_takes_a_few_milliseconds(found: dict[int, Costs]) -> None:
    assert statistics.median(found[LARGE].report) < 2 * 3.0


def test_a_proposal_grows_slower_than_the_study(found: dict[int, Costs]) -> None:
    small, large = (statistics.median(found[size].ask) for size in (SMALL, LARGE))
    assert large < 10 * small
    assert large < 2 * 2 * 60, "60 ms at 1,000 trials of a quiet machine"


def test_gaps_are_from_the_last_step_to_the_next_trials_first_on_each_host() -> None:
    events = [
        Event("added", 0, 0, 1, 10.0),
        Event("stepped", 0, 1, 1, 11.0),
        Event("ended", 0, 2, 1, 12.0),
        Event("stepped", 5, 1, 2, 12.1),
        Event("removed", 0, 2, 1, 12.2),
        Event("added", 1, 0, 1, 12.4),
        Event("stepped", 1, 1, 1, 12.5),
    ]
    assert gaps(events) == [0.5]
