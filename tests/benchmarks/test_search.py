"""The benchmark of whole searches compares like with like."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest

from benchmarks.conditions import ROOT
from benchmarks.search.contestants import CONTESTANTS, LIMIT, OURS, Done
from benchmarks.search.events import Course
from benchmarks.search.figures import equal_figures, own_figures
from benchmarks.search.ours import Scripted, study_file
from benchmarks.search.processes import Spent, Times, run_measured
from benchmarks.search.workload import COURSES, NUM_VALIDATIONS, Workload
from hpo.spec import StudySpec

PEERS = ROOT / "benchmarks" / "peers"
SCRIPTED = Workload(Path("/m"), Path("/d"), scripted=True)
OWN = Workload(Path("/m"), Path("/d"), scripted=False, seed=3)


def spec_of(workload: Workload) -> StudySpec:
    given = {name: value for name, value in study_file(workload).items() if name != "storage"}
    return StudySpec.model_validate(given)


def test_verdicts_are_as_many_as_asha_gives_with_a_third_going_on() -> None:
    assert len(COURSES) == 16
    assert sum(course > 1 for course in COURSES) in (5, 6, 7)
    assert max(COURSES) == NUM_VALIDATIONS
    assert sorted(SCRIPTED.courses()) == sorted(COURSES)


def test_ours_has_the_configs_and_verdicts_that_the_peers_are_given() -> None:
    study = spec_of(SCRIPTED)
    script = SCRIPTED.as_json()["script"]
    assert isinstance(script, list)
    enqueued = study.search_space.enqueued
    assert len(enqueued) == len(script) == 16
    for number, (point, entry) in enumerate(zip(enqueued, script, strict=True)):
        assert point["learning_rate"] == entry["learning_rate"]
        assert point["lora_r"] == entry["lora_r"]
        assert point["per_device_train_batch_size"] == entry["batch_size"]
        assert point["seed"] == number
    assert study.pruner.options["courses"] == [entry["num_validations"] for entry in script]
    assert study.fixed["max_steps"] == SCRIPTED.as_json()["max_steps"]


def test_all_begin_their_own_searches_with_the_same_configs() -> None:
    study = spec_of(OWN)
    initial = OWN.as_json()["initial"]
    assert isinstance(initial, list)
    assert [point["learning_rate"] for point in study.search_space.enqueued] == [
        config["learning_rate"] for config in initial
    ]
    assert OWN.as_json()["script"] is None
    assert study.pruner.type == "asha"


def test_the_script_stops_a_trial_at_its_validation_and_not_before() -> None:
    from optuna.trial import create_trial

    pruner = Scripted([3])
    for step, stops in ((2, False), (3, True)):
        trial = create_trial(value=1.0, intermediate_values={step: 1.0})
        trial.number = 0
        assert pruner.prune(None, trial) is stops  # type: ignore[arg-type]


def course(times: list[tuple[float, str, dict[str, float]]], started: float = 100.0) -> Course:
    return Course(started, [{"t": t, "kind": kind, **values} for t, kind, values in times])


EVENTS = course(
    [
        (108.0, "search_begin", {}),
        (110.0, "begin", {"trial": 0}),
        (112.0, "step", {"trial": 0, "step": 1}),
        (113.0, "validation", {"trial": 0, "step": 1, "loss": 3.0}),
        (120.0, "step", {"trial": 1, "step": 1}),
        (121.0, "validation", {"trial": 1, "step": 1, "loss": 2.0}),
        (122.0, "search_end", {}),
    ]
)


def test_times_of_a_search_are_from_its_command_and_warm_ones_from_its_first_trial() -> None:
    assert (EVENTS.num_trials, EVENTS.num_steps, EVENTS.num_validations) == (2, 2, 2)
    assert EVENTS.best_loss == 2.0
    assert EVENTS.first_step_s == 12.0
    assert EVENTS.warm_s == 11.0
    assert EVENTS.seconds_to(2.5) == 21.0
    assert EVENTS.seconds_to(1.9) == math.inf


TIMES = [
    Times(at, own, whole)
    for at, own, whole in [(100, 0, 0), (111, 4, 5), (121, 4.1, 15), (130, 9, 20)]
]


def test_the_drivers_share_is_that_of_its_own_process_while_trials_train() -> None:
    spent = Spent(100.0, 30.0, TIMES, 1.0, 0)
    assert spent.own_share(*EVENTS.warm) == pytest.approx(0.1 / 10)
    assert math.isnan(spent.own_share(112.0, 113.0))


def done(wall_s: float, of: Course = EVENTS) -> Done:
    return Done(Spent(100.0, wall_s, TIMES, 1.0, 0), of)


def test_goals_are_held_against_the_fastest_peer_and_the_limit() -> None:
    rounds = {OURS: [done(60.0)], "slow": [done(200.0)], "fast": [done(100.0)], LIMIT: [done(9.0)]}
    goals = {f.name: f.is_reached for f in equal_figures(rounds) if f.goal is not None}
    assert goals == {
        f"wall time: {OURS} / fast": True,
        f"time without start-up: {OURS} / {LIMIT}": False,
        f"{OURS}: driver's share of the processor time without start-up": True,
    }


def test_the_time_to_a_good_loss_is_compared_with_the_peer_that_found_the_best() -> None:
    worse = course([(150.0, "validation", {"trial": 0, "step": 1, "loss": 2.6})])
    rounds = {OURS: [done(1.0)], "better": [done(1.0)], "worse": [done(1.0, worse)]}
    goals = {f.name: f.value for f in own_figures(rounds) if f.goal is not None}
    assert list(goals.values()) == [1.0, 1.0]
    assert all("better" in name for name in goals)


def test_every_contestant_has_its_recipe_which_uses_nothing_of_ours() -> None:
    scripts = {contestant.script for contestant in CONTESTANTS if contestant.script is not None}
    assert all((PEERS / script).is_file() for script in scripts)
    ours = re.compile(r"^\s*(from|import) (hpo|trainers|search_spaces|benchmarks)\b", re.MULTILINE)
    for path in PEERS.glob("*.py"):
        assert not ours.search(path.read_text()), path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_a_command_and_its_processes_take_is_counted_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    child = "x = sum(range(5 * 10 ** 7)); print(x)"
    script = (
        "import subprocess, sys; b = bytearray(64 * 2**20); b[::4096] = b'1' * len(b[::4096]); "
        f"subprocess.run([sys.executable, '-c', {child!r}]); "
        "subprocess.Popen(['sleep', '60'], start_new_session=True)"
    )
    spent = run_measured([sys.executable, "-c", script], tmp_path / "log", {}, tmp_path, 60)
    assert spent.code == 0
    assert spent.wall_s < 50
    assert 0 < spent.times[-1].own_s < spent.cpu_s
    assert (tmp_path / "log").read_text().strip() == str(sum(range(5 * 10**7)))
    import psutil

    left = [p.cmdline() for p in psutil.Process().children(recursive=True) if p.is_running()]
    assert ["sleep", "60"] not in left


def test_the_file_for_the_peers_is_json(tmp_path: Path) -> None:
    SCRIPTED.write(tmp_path / "w.json")
    assert json.loads((tmp_path / "w.json").read_text())["num_trials"] == 16
