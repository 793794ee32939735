"""kill -9 at every point of a trial's life: the study ends as the one that nobody killed.

Real processes, real kills; study, store and trainer without Ray. What is compared is read from the
database and the disk. The whole matrix is in `make soak`; a part of it here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.driver.postgres import Server
from tests.kills.audit import audit, final_study, opened
from tests.kills.eventful import ENDS, NUM_TRIALS, POINTS, Case

WHERE = ("first", "middle", "last")
Faults = Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Whole:
    """The study that nobody killed.

    Attributes:
        counts: How often it came to each point.
        final: What it came to.
    """

    counts: Counter[str]
    final: dict[str, object]

    def time(self, point: str, where: str) -> int:
        """Return the first, middle or last time that it came to a point."""
        return {"first": 1, "middle": self.counts[point] // 2 + 1, "last": self.counts[point]}[
            where
        ]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: a process that is killed takes no page with it."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="hpo-kills-", dir=memory if memory.is_dir() else None))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Whole:
    case = Case(folder / "whole", f"sqlite:///{folder}/whole.db", "whole")
    points = folder / "points.json"
    assert not case.live(points=points)
    with opened("whole", case.url) as record:
        assert audit(record, case.runs, NUM_TRIALS, ENDS).all == []
        return Whole(Counter(json.loads(points.read_text())), final_study(record, case.runs))


@pytest.fixture(scope="module")
def server_url(postgres: Server) -> str:
    return postgres.create("kills")


class Matrix:
    """Kills and compares."""

    def __init__(self, folder: Path, whole: Whole, note: Callable[[str, object], None]) -> None:
        self._folder = folder
        self._whole = whole
        self._note = note

    def survives(self, faults: Faults, url: str | None = None) -> Case:
        """Kill process after process, and hold what comes out against what should."""
        name = "-".join(f"{point}-{at}" for point, at in faults).replace(" ", "_")[:90]
        where = Path(tempfile.mkdtemp(dir=self._folder))
        case = Case(where, url or f"sqlite:///{where}/hpo.db", f"{where.name}-{name}")
        case.killed_at(faults)
        self._note("kills", len(case.kills))
        case.journal.check()
        with opened(case.study, case.url) as record:
            assert audit(record, case.runs, NUM_TRIALS, ENDS).all == []
            assert final_study(record, case.runs) == self._whole.final
        assert case.journal.trained_again == []
        shutil.rmtree(where)
        return case


@pytest.fixture
def matrix(folder: Path, whole: Whole, record_property: Callable[[str, object], None]) -> Matrix:
    return Matrix(folder, whole, record_property)


def test_everything_happens_in_the_study_that_is_killed(whole: Whole) -> None:
    reasons = {row[-1] for row in whole.final["trials"]}
    assert reasons == ENDS
    assert whole.final["best"]["step"] < 9, "the best validation is not the last"
    assert len(whole.final["kept"]) == 2
    assert {point for point in POINTS if not whole.counts[point]} == set()


@pytest.mark.parametrize("point", POINTS)
def test_killed_once_on_sqlite(matrix: Matrix, whole: Whole, point: str) -> None:
    where = WHERE[POINTS.index(point) % 3]
    assert len(matrix.survives([(point, whole.time(point, where))]).kills) == 1


@pytest.mark.parametrize("point", POINTS[1::3])
def test_killed_once_on_postgresql(
    matrix: Matrix, whole: Whole, server_url: str, point: str
) -> None:
    where = WHERE[POINTS.index(point) // 3 % 3]
    assert len(matrix.survives([(point, whole.time(point, where))], server_url).kills) == 1


@pytest.mark.parametrize(
    "faults",
    [
        [("report stored", 5), ("adopted", 1), ("judged", 1)],
        [("best moved", 1), ("best copied", 1), ("best moved", 1)],
        [("checkpoint renamed", 4), ("checkpoint renamed", 1), ("checkpoint renamed", 1)],
        [("told", 5), ("deleting", 1), ("deleted", 1), ("proposed", 1)],
    ],
    ids=lambda faults: ", ".join(point for point, _ in faults),
)
def test_killed_again_while_it_goes_on(matrix: Matrix, faults: Faults) -> None:
    assert len(matrix.survives(faults).kills) == len(faults)


@pytest.mark.soak
class TestTheWholeMatrix:
    """Every point, the first, a middle and the last time; then again, at each other point."""

    @pytest.fixture(params=["sqlite", "postgresql"])
    def url(self, request: pytest.FixtureRequest) -> str | None:
        return None if request.param == "sqlite" else request.getfixturevalue("server_url")

    @pytest.mark.parametrize("where", WHERE)
    @pytest.mark.parametrize("point", POINTS)
    def test_killed_once(
        self, matrix: Matrix, whole: Whole, url: str | None, point: str, where: str
    ) -> None:
        matrix.survives([(point, whole.time(point, where))], url)

    @pytest.mark.parametrize("where", WHERE)
    @pytest.mark.parametrize("point", POINTS)
    def test_killed_there_three_times_in_a_row(
        self, matrix: Matrix, whole: Whole, url: str | None, point: str, where: str
    ) -> None:
        matrix.survives([(point, whole.time(point, where)), (point, 1), (point, 1)], url)

    @pytest.mark.parametrize("then", POINTS)
    @pytest.mark.parametrize("point", POINTS)
    def test_killed_again_on_the_way_back(
        self, matrix: Matrix, whole: Whole, point: str, then: str
    ) -> None:
        matrix.survives([(point, whole.time(point, "middle")), (then, 1), ("adopted", 1)])
