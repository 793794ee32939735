"""Whatever is in a file or a row: it works or it is one message; soon, and nothing of it is run."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz.fuzzer import Outcome, run
from tests.fuzz.guard import MEMORY_LIMIT_BYTES, Canary, attempt
from tests.fuzz.surface import Surface
from tests.fuzz.surfaces import SURFACES, all_surfaces
from tests.integration.command import ROOT, environment

QUICK_FILES = 3000
SOAK_FILES = 20_000
SEED = 5
SEEDS = Path(__file__).parent / "seeds"


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Canary:
    return Canary(tmp_path_factory.mktemp("cage") / "CANARY")


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory: pytest.TempPathFactory) -> list[Surface]:
    return all_surfaces(tmp_path_factory.mktemp("fuzz") / "made")


@pytest.fixture(autouse=True)
def within_the_cage(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(canary.file.parent)  # where payloads would leave the canary's file
    monkeypatch.setenv("HPO_CACHE", str(canary.file.parent / "cache"))


def told(outcome: Outcome) -> str:
    """Return what failed, for a person: how often, and the first of each kind."""
    kinds = {failure.kind: failure for failure in outcome.failures}
    return "\n\n".join(
        f"{kind}\ninput {f.number}, made of {f.name}: {f.content[:1000]!r}\n{f.what}"
        for kind, f in kinds.items()
    )


@pytest.mark.slow
def test_every_input_works_or_is_one_message(
    surfaces: list[Surface], canary: Canary, tmp_path: Path
) -> None:
    outcome = run(surfaces, QUICK_FILES, SEED, tmp_path, canary)
    assert not outcome.failures, told(outcome)
    assert outcome.num_files == QUICK_FILES
    assert set(outcome.by_surface) == set(SURFACES), "every surface had its share"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_thousand_inputs_and_more_work_or_are_one_message(
    surfaces: list[Surface], canary: Canary, tmp_path: Path
) -> None:
    outcome = run(surfaces, SOAK_FILES, int(time.time()), tmp_path, canary)
    print(outcome.line)
    assert not outcome.failures, told(outcome)
    assert outcome.num_files == SOAK_FILES >= 10_000


def seeds() -> list[Path]:
    return sorted(path for path in SEEDS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", seeds(), ids=lambda path: str(path.relative_to(SEEDS)))
def test_an_input_that_once_failed_does_no_more(
    path: Path, surfaces: list[Surface], canary: Canary, tmp_path: Path
) -> None:
    surface = next(one for one in surfaces if one.name == path.parent.name)
    tried = surface.of(tmp_path, path.name, path.read_bytes())  # type: ignore[attr-defined]
    assert attempt(tried.action, tried.allowed, canary) is None


def test_the_same_seed_tries_the_same(surfaces: list[Surface], tmp_path: Path) -> None:
    made = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        files = [surface for surface in surfaces if surface.name in ("study", "config")]
        contents = []
        for number in range(40):
            here = folder / str(number)
            here.mkdir()
            rng = random.Random(number)
            contents.append(files[number % 2].attempt(here, rng).content)
        made.append(contents)
    assert made[0] == made[1]
    assert len(set(made[0])) > 30


# The guard itself: what it is to catch, it catches.


def test_the_guard_hears_a_process_that_is_started(canary: Canary) -> None:
    found = attempt(lambda: subprocess.run(["true"], check=True), (ValueError,), canary)
    assert found is not None
    assert "subprocess.Popen" in found


def test_the_guard_sees_the_canarys_file(canary: Canary) -> None:
    found = attempt(canary.file.touch, (ValueError,), canary)
    assert found is not None
    assert "canary" in found
    assert not canary.file.exists()


def test_the_guard_ends_what_hangs(canary: Canary) -> None:
    def hang() -> None:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    found = attempt(hang, (Exception,), canary, hang_limit_s=0.5)
    assert found is not None
    assert "took too long" in found


def test_the_guard_ends_what_reckons_for_ever(canary: Canary) -> None:
    def reckon() -> None:
        while True:
            pass

    found = attempt(reckon, (Exception,), canary)
    assert found is not None
    assert "took too long" in found


def test_the_guard_ends_what_eats_memory(canary: Canary) -> None:
    found = attempt(lambda: bytearray(2 * MEMORY_LIMIT_BYTES), (ValueError,), canary)
    assert found is not None
    assert "bytes" in found


def test_the_guard_wants_a_message(canary: Canary) -> None:
    def fail() -> None:
        raise ValueError(" ")

    assert attempt(fail, (ValueError,), canary) == "ValueError without a message"
    assert attempt(lambda: 1 / 0, (ValueError,), canary) is not None
    assert attempt(lambda: int("x"), (ValueError,), canary) is None


def test_the_command_prints_one_line_of_figures() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--files", "20", "--seed", "1", "--only", "config"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"files 20, failures 0, seconds [\d.]+\n", done.stdout)
