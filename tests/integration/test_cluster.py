"""Placement on several nodes with several (simulated) GPUs each, and hosts that outlive trials."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import placement_group

from hpo.cluster.driver import Driver
from hpo.cluster.messages import HostSetup, Loss
from hpo.cluster.place import Place
from hpo.errors import TrainerError
from hpo.study import Claim, Study
from tests.integration.command import hpo, journal, wait_until, write_study
from tests.integration.ray_cluster import joined_cluster
from tests.one_worker import make_spec, sqlite, start
from trainers.protocol import Report

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with joined_cluster(num_gpus=2, others=[1]) as cluster:
        yield cluster


class Silent:
    """Watches nothing."""

    def began(self, claim: Claim) -> None: ...
    def reported(self, number: int, report: Report, over: bool) -> None: ...
    def lost(self, number: int, cause: str, over: bool) -> None: ...
    def noted(self, message: str) -> None: ...
    def tick(self) -> None: ...


class Listening(Silent):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, message: str) -> None:
        self.notes.append(message)


def test_every_gpu_of_every_node_has_one_host_that_trains_its_share(
    tmp_path: Path, cluster: Cluster
) -> None:
    fixed = {"max_steps": 20, "step_s": 0.1, "journal": str(tmp_path / "journal.jsonl")}
    spec = make_spec(tmp_path, fixed=fixed, resources={"gpu": 0.5}, pruner={"type": "none"})
    record = start(spec, sqlite(tmp_path))
    study = Study(record, 9)
    assert not Driver(study, Silent()).run().early
    study.close()
    assert {t.state for t in record.trials()} == {"COMPLETE"}
    hosts: dict[int, set[str]] = {}
    for line in journal(tmp_path):
        hosts.setdefault(line["pid"], set()).add(line["devices"])
    assert len(hosts) == 3, "one host a device, on both nodes"
    assert sorted(next(iter(devices)) for devices in hosts.values()) == ["0", "0", "1"]
    assert most_at_once(journal(tmp_path)) <= 2, "half a GPU each"


def most_at_once(lines: list[dict[str, object]]) -> int:
    """Return the most trials that any host trained between two of its joins."""
    most = 0
    for pid in {line["pid"] for line in lines}:
        present: dict[object, int] = {}
        for line in lines:
            if line["pid"] == pid and line["what"] == "step":
                present[line["trial"]] = int(line["step"])
                if present[line["trial"]] == 20:
                    del present[line["trial"]]
                most = max(most, len(present))
    return most


def test_cpu_hosts_divide_the_cores_and_the_trials_of_a_node_without_a_gpu(tmp_path: Path) -> None:
    options = {"max_steps": 20, "step_s": 0.1}
    resources = {"gpu": 0.25, "cpu_hosts": 2}
    write_study(tmp_path, fixed=options, resources=resources, pruner={"type": "none"})
    result = hpo(tmp_path, "run", "study.yaml", "--trials", "4")
    assert result.code == 0, result.err
    lines = journal(tmp_path)
    hosts = {line["pid"] for line in lines}
    assert len(hosts) == 2
    assert {line["threads"] for line in lines} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
    homes = {line["trial"]: line["pid"] for line in reversed(lines)}  # the first that each had
    assert sorted(Counter(homes.values()).values()) == [2, 2]
    assert most_at_once(lines) == 2


def test_a_host_without_trials_takes_one_of_those_that_share_another(tmp_path: Path) -> None:
    write_study(
        tmp_path,
        fixed={"max_steps": 40, "step_s": 0.05, "diverge_above": 0.5},
        resources={"gpu": 0.25, "cpu_hosts": 2},
        pruner={"type": "none"},
        enqueue=[{"x": 0.1, "y": 1}, {"x": 0.9, "y": 1}, {"x": 0.2, "y": 1}, {"x": 0.8, "y": 1}],
    )
    result = hpo(tmp_path, "run", "study.yaml", "--trials", "4")
    assert result.code == 0, result.err
    trials = hpo(tmp_path, "status", "s", "--json").json()["trials"]
    assert [trial["reason"] for trial in trials] == ["finished", "diverged"] * 2
    for number in (0, 2):
        steps = [said["step"] for said in trials[number]["validations"]]
        assert steps == list(range(1, 41)), "none is lost, none comes twice"
    hosts = {
        number: [line["pid"] for line in journal(tmp_path) if line["trial"] == number]
        for number in (0, 2)
    }
    assert sorted(len(set(pids)) for pids in hosts.values()) == [1, 2], "one of them has moved"
    assert hosts[0][0] == hosts[2][0]
    assert hosts[0][-1] != hosts[2][-1]
    assert result.err.count("moves to a host that has fewer") == 1


def test_trials_that_do_not_fit_make_room_wait_or_are_told_so(
    tmp_path: Path, cluster: Cluster
) -> None:
    fixed = {"memory": 3.0, "max_steps": 12, "step_s": 0.02, "hidden_until": 4}
    spec = make_spec(
        tmp_path,
        fixed={**fixed, "journal": str(tmp_path / "journal.jsonl")},
        space={"hidden_size": [0.0, 1.0, 3.0], "y": {"type": "int", "low": 1, "high": 100}},
        enqueue=[
            {"hidden_size": size, "y": number} for number, size in enumerate([0.0, 1.0, 3.0] * 5, 1)
        ],
        resources={"gpu": 0.2},
        pruner={"type": "none"},
    )
    record = start(spec, sqlite(tmp_path))
    study = Study(record, 15)
    listening = Listening()
    assert not Driver(study, listening).run().early
    study.close()
    for trial in record.trials():
        if trial.params["hidden_size"] == 3.0:
            assert (trial.state, trial.reason) == ("PRUNED", "out_of_memory")
        else:
            assert trial.state == "COMPLETE"
            assert [said["step"] for said in trial.reports.values()] == list(range(1, 13))
    assert any("makes room and goes on later: out of memory: " in note for note in listening.notes)
    steps: dict[object, list[object]] = {}
    for line in journal(tmp_path):
        if line["what"] == "step":
            steps.setdefault(line["trial"], []).append(line["step"])
    assert all(made == list(range(1, len(made) + 1)) for made in steps.values()), "none twice"


def test_auto_gives_each_trial_the_share_that_was_measured(
    tmp_path: Path, cluster: Cluster
) -> None:
    fixed = {"memory": 7.0, "max_steps": 20, "step_s": 0.1}
    spec = make_spec(
        tmp_path,
        fixed={**fixed, "journal": str(tmp_path / "journal.jsonl")},
        space={"size": {"type": "float", "low": 1.0, "high": 2.0}},
        resources={"gpu": "auto"},
        pruner={"type": "none"},
    )
    record = start(spec, sqlite(tmp_path))
    study = Study(record, 9)
    listening = Listening()
    assert not Driver(study, listening).run().early
    study.close()
    assert any("gpu: auto: 3 trials share a GPU" in note for note in listening.notes)
    assert {t.state for t in record.trials()} == {"COMPLETE"}
    assert most_at_once(journal(tmp_path)) == 3


def test_a_trainer_that_cannot_be_measured_ends_the_run_with_its_reason(
    tmp_path: Path, cluster: Cluster
) -> None:
    spec = make_spec(tmp_path, fixed={"base": "missing"}, resources={"gpu": "auto"})
    study = Study(start(spec, sqlite(tmp_path)), 2)
    with pytest.raises(TrainerError, match="the model 'missing' cannot be loaded"):
        Driver(study, Silent()).run()
    study.close()


def test_two_gpus_a_trial_give_the_host_both(tmp_path: Path, cluster: Cluster) -> None:
    fixed = {"max_steps": 2, "journal": str(tmp_path / "journal.jsonl")}
    spec = make_spec(tmp_path, fixed=fixed, resources={"gpu": 2})
    record = start(spec, sqlite(tmp_path))
    study = Study(record, 2)
    Driver(study, Silent()).run()
    study.close()
    assert {line["devices"] for line in journal(tmp_path)} == {"0,1"}


def placed(tmp_path: Path, run_id: str, number: int, *, node: int = 0, **options: object) -> Place:
    """Return a trial's place on the first GPU of a node: 0 is the driver's own."""
    setup = HostSetup("tests.fake_trainer:FakeTrainer", {}, str(tmp_path), patience_s=2)
    journaled = {"journal": str(tmp_path / "journal.jsonl"), **options}
    place = Place(placement_group([{"CPU": 0.001}]), {"CPU": 0.001})
    ours = ray.get_runtime_context().get_node_id()
    node_ids = sorted((x["NodeID"] for x in ray.nodes()), key=lambda node_id: node_id != ours)
    place.settle(node_ids[node], "0")
    place.take(
        {"number": number, "config": journaled, "setup": setup, "run_id": run_id}
        | {"stay": 1, "alone": False, "cpu_host": 0}
    )
    return place


def next_report(place: Place) -> Report:
    """Return a trial's next report, past what says that it is alive."""
    while True:
        news = [word for word in place.heard(ray.get(place.ask())) if word.is_news]
        if news:
            assert news[0].report is not None
            return news[0].report


def test_a_host_outlives_the_trial_that_it_was_made_for(tmp_path: Path, cluster: Cluster) -> None:
    options = {"max_steps": 50, "step_s": 0.05}
    first, second = (placed(tmp_path, "outlives", number, **options) for number in (1, 2))
    for place in (first, second):
        assert next_report(place).step == 1
    assert first.shares_host(second)
    first.leave()
    assert next_report(second).step == 2
    second.leave()
    assert len({line["pid"] for line in journal(tmp_path)}) == 1


def test_a_host_that_nobody_calls_leaves(tmp_path: Path, cluster: Cluster) -> None:
    next_report(placed(tmp_path, "leaves", 7, max_steps=3))
    wait_until(lambda: not _hosts("leaves"), "the host has left")


@pytest.mark.parametrize("node", [0, 1], ids=["the driver's node", "another node"])
def test_what_a_dead_host_has_left_is_found_on_its_node(
    tmp_path: Path, cluster: Cluster, node: int
) -> None:
    doomed, beside = (
        placed(tmp_path, f"dead{node}", number, node=node, max_steps=90, step_s=0.1, **options)
        for number, options in ((1, {"acts": "crash", "acts_at": 30}), (2, {}))
    )
    assert [next_report(place).step for place in (doomed, beside)] == [1, 1]
    losses = []
    for place in (doomed, beside):
        with pytest.raises(RayActorError) as raised:
            all(next_report(place).step for _ in range(90))
        losses.append(place.mourned(ray.get(place.left(raised.value))).loss)
    for loss in losses:
        assert loss.is_counted
        assert "Fatal Python error" in loss.cause
        assert "in _act" in loss.output
    assert losses[0].host == losses[1].host


def test_a_place_on_a_node_that_is_gone_is_lost(tmp_path: Path, cluster: Cluster) -> None:
    lost = placed(tmp_path, "gone", 1)
    lost.settle("a" * 56, "0")
    with pytest.raises(RayError) as raised:
        ray.get(lost.ask())
    with pytest.raises(RayError):
        ray.get(lost.left(raised.value))
    assert lost.lost().loss == Loss("its node was lost", False, "a" * 56, True)
    assert lost.is_lost


def _hosts(run_id: str) -> list[str]:
    from ray.util import list_named_actors

    names = [actor["name"] for actor in list_named_actors(all_namespaces=True)]
    return [name for name in names if name.startswith(f"hpo-host-{run_id}-")]


def test_ray_address_joins_a_running_cluster(tmp_path: Path, cluster: Cluster) -> None:
    write_study(tmp_path, ray_address=cluster.address, fixed={"max_steps": 3})
    result = hpo(tmp_path, "run", "study.yaml", "--trials", "4")
    assert result.code == 0, result.err
    assert "joining the Ray cluster" in result.err
    assert {line["devices"] for line in journal(tmp_path)} <= {"0", "1"}


def test_a_cluster_that_does_not_answer_is_said_at_once(tmp_path: Path) -> None:
    write_study(tmp_path, ray_address="127.0.0.1:1")
    result = hpo(tmp_path, "run", "study.yaml", "--trials", "1")
    assert result.code == 2
    assert "cannot join the Ray cluster" in result.err
