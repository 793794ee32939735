"""What a study costs its driver: an ask, a report with its verdict, a tell, by how much is stored.

Without Ray and without training; on SQLite and PostgreSQL, with TPE and at random.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.driver.many_trials import NUM_REPORTS, large_study, report_of, save_empty, study_of
from benchmarks.driver.postgres import running_server
from benchmarks.figures import Figure, Goal, at_least, at_most, ratio
from hpo.studies import open_study
from hpo.study import Study
from trainers.protocol import Report

SIZES = (100, 1_000, 10_000)
SAMPLERS = ("random", "tpe")
DATABASES = ("sqlite", "postgresql")
TRIALS_A_REPETITION = 4

GOALS: dict[tuple[str, str, str, int], Goal] = {
    ("report", "sqlite", "random", 10_000): at_most(3.0),
    ("report", "sqlite", "tpe", 10_000): at_most(3.0),
    ("ask", "sqlite", "tpe", 1_000): at_most(60.0),
    ("ask", "postgresql", "tpe", 1_000): at_most(60.0),
}
"""In milliseconds, by (act, database, sampler, stored trials)."""


@dataclass
class Costs:
    """Milliseconds of each act, one value a repetition.

    Attributes:
        ask: A proposal until it is stored.
        report: A report until its verdict.
        tell: A report that ends its trial, with the files that go.
        per_second: Reports that one driver takes in a second, of whatever kind.
    """

    ask: list[float] = field(default_factory=list)
    report: list[float] = field(default_factory=list)
    tell: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)


def study_figures(
    repetitions: int, tell: Callable[[str], None], sizes: tuple[int, ...] = SIZES
) -> list[Figure]:
    """Return the cost of each act at each size, and how it grows from the least to the greatest."""
    figures = []
    with _urls() as url_of, tempfile.TemporaryDirectory(prefix="hpo-bench-") as folder:
        for database in DATABASES:
            for sampler in SAMPLERS:
                by_size = {}
                for size in sizes:
                    tell(f"{database}, {sampler}, {size} trials stored")
                    place = Path(folder) / f"{database}-{sampler}-{size}"
                    url = url_of(database, place)
                    by_size[size] = costs(place, url, sampler, size, repetitions)
                    figures += _figures_at(database, sampler, size, by_size[size])
                figures += _growth(database, sampler, by_size)
    return figures


def costs(
    folder: Path,
    url: str,
    sampler: str,
    size: int,
    repetitions: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Costs:
    """Return what the next trials of a study cost that has ``size`` of them.

    Args:
        folder: Gets the study's files.
        url: Of a database that has no such study.
        sampler: Its name.
        size: Trials stored before.
        repetitions: Of which each is a few trials, and its values are medians.
        clock: In seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    large_study(study_of(folder, sampler), url, size).database.close()
    study = Study(open_study("large", url), size + (repetitions + 1) * TRIALS_A_REPETITION)
    found = Costs()
    _train_some(study, clock)  # what is imported, connected and compiled once
    for _ in range(repetitions):
        ask, report, tell = _train_some(study, clock)
        found.ask.append(1000 * statistics.median(ask))
        found.report.append(1000 * statistics.median(report))
        found.tell.append(1000 * statistics.median(tell))
        found.per_second.append(len(report + tell) / sum(report + tell))
    study.close()
    study.record.database.close()
    return found


def _train_some(
    study: Study, clock: Callable[[], float]
) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds of each ask, each report and each tell of a few trials."""
    ask: list[float] = []
    report: list[float] = []
    tell: list[float] = []
    for _ in range(TRIALS_A_REPETITION):
        began = clock()
        claim = study.next_trial()
        ask.append(clock() - began)
        assert claim is not None
        history: list[Report] = []
        for validation in range(1, NUM_REPORTS + 1):
            history.append(report_of(claim.number, validation))
            study.store.write(claim.number, 10 * validation, history, True, save_empty)
            began = clock()
            is_over = study.report(claim.number, history[-1])
            (tell if is_over else report).append(clock() - began)
            if is_over:
                break
    return ask, report, tell


def _figures_at(database: str, sampler: str, size: int, found: Costs) -> list[Figure]:
    at = f"{database}, {sampler}, {size} trials"
    acts = {"ask": found.ask, "report": found.report, "tell": found.tell}
    figures = [
        Figure(f"{act}, ms: {at}", tuple(values), GOALS.get((act, database, sampler, size)))
        for act, values in acts.items()
    ]
    return [*figures, Figure(f"reports a second: {at}", tuple(found.per_second), at_least(500))]


def _growth(database: str, sampler: str, by_size: dict[int, Costs]) -> list[Figure]:
    least, greatest = min(by_size), max(by_size)
    small, large = by_size[least], by_size[greatest]
    pairs = {
        "ask": (large.ask, small.ask),
        "report": (large.report, small.report),
        "tell": (large.tell, small.tell),
    }
    return [
        ratio(f"{act}, {greatest} / {least} trials: {database}, {sampler}", above, below)
        for act, (above, below) in pairs.items()
    ]


@contextmanager
def _urls() -> Iterator[Callable[[str, Path], str]]:
    """Yield what gives each study an empty database of its own."""
    with running_server() as server:

        def url_of(database: str, place: Path) -> str:
            if database == "postgresql":
                return server.create(place.name)
            place.mkdir(parents=True)
            return f"sqlite:///{place / 'hpo.db'}"

        yield url_of
