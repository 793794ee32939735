"""What a study costs when it is large: `python -m benchmarks.driver.state [--trials 10000]`.

The study alone, on SQLite, without Ray and without training: memory a trial, seconds until a resumed one
may go on, milliseconds of a report with its verdict in a small and in the large study, and seconds of
`hpo status`. Prints JSON; each duration also as processor time, which other work on the machine does not
lengthen.
"""

from __future__ import annotations

import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer

from benchmarks.driver.many_trials import NUM_REPORTS, large_study, report_of, study_of
from hpo.studies import open_study
from hpo.study import Study

SMALL = 100
NUM_MEASURED = 40


@dataclass(frozen=True)
class Spent:
    """A duration.

    Attributes:
        wall: By the clock.
        cpu: Of the processor.
    """

    wall: float
    cpu: float


@dataclass(frozen=True)
class StateFigures:
    """Figures of one large study.

    Attributes:
        num_trials: Stored.
        num_reports: Stored.
        memory_kib_per_trial: By which a driver that holds the study is larger.
        resume_s: From the opened database until the first trial may be handed out.
        report_ms: Of a report with its verdict, the median.
        report_small_ms: The same with ``SMALL`` trials stored.
        proposal_ms: Of the next trial, proposed at random and stored; the median.
        status_s: Of `hpo status`, the process and its imports included.
    """

    num_trials: int
    num_reports: int
    memory_kib_per_trial: float
    resume_s: Spent
    report_ms: Spent
    report_small_ms: Spent
    proposal_ms: Spent
    status_s: Spent


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Spent:
        """Return what was spent since, in seconds."""
        return Spent(time.perf_counter() - self._wall, time.process_time() - self._cpu)


def measure(folder: Path, num_trials: int) -> StateFigures:
    """Make a study of so many trials in a folder, and measure it."""
    small, _ = _report_and_proposal_ms(_resumed(folder / "small", SMALL))
    large = folder / "large"
    url = _made(large, num_trials)
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    watch = Stopwatch()
    study = Study(open_study("large", url), num_trials + NUM_MEASURED)
    resume_s = watch.read()
    gc.collect()
    grown_kib = (process.memory_info().rss - before) / 1024
    report_ms, proposal_ms = _report_and_proposal_ms(study)
    return StateFigures(
        num_trials=num_trials,
        num_reports=num_trials * NUM_REPORTS,
        memory_kib_per_trial=grown_kib / num_trials,
        resume_s=resume_s,
        report_ms=report_ms,
        report_small_ms=small,
        proposal_ms=proposal_ms,
        status_s=_status_s(url),
    )


def _made(folder: Path, num_trials: int) -> str:
    folder.mkdir(parents=True)
    url = f"sqlite:///{folder / 'hpo.db'}"
    record = large_study(study_of(folder, "random"), url, num_trials)
    assert record.num_trials() == num_trials
    record.database.close()
    return url


def _resumed(folder: Path, num_trials: int) -> Study:
    return Study(open_study("large", _made(folder, num_trials)), num_trials + NUM_MEASURED)


def _report_and_proposal_ms(study: Study) -> tuple[Spent, Spent]:
    """Train further trials, and return the medians of a report and of a proposal."""
    reports: list[Spent] = []
    proposals: list[Spent] = []
    for _ in range(NUM_MEASURED):
        watch = Stopwatch()
        claim = study.next_trial()
        proposals.append(watch.read())
        assert claim is not None
        for validation in range(1, NUM_REPORTS + 1):
            report = report_of(claim.number, validation)
            watch = Stopwatch()
            is_over = study.report(claim.number, report)
            if is_over:  # an end costs more: files are deleted, and best/ may be written
                break
            reports.append(watch.read())
    study.close()
    return _median_ms(reports), _median_ms(proposals)


def _median_ms(spent: Sequence[Spent]) -> Spent:
    return Spent(
        1000 * statistics.median(one.wall for one in spent),
        1000 * statistics.median(one.cpu for one in spent),
    )


def _status_s(url: str) -> Spent:
    command = [sys.executable, "-m", "hpo", "status", "large", "--storage", url]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "older trials" in shown.stdout
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Spent(wall, user + system)


def main(
    trials: Annotated[int, typer.Option(min=SMALL, help="Of the large study.")] = 10_000,
) -> None:
    """Measure a large study and print its figures."""
    with tempfile.TemporaryDirectory(prefix="hpo-state-") as folder:
        print(json.dumps(asdict(measure(Path(folder), trials)), indent=1))


if __name__ == "__main__":
    typer.run(main)
