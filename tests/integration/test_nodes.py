"""A cluster whose nodes come and go, with a store that all of them reach by its URL.

The head has no GPU, so that all trials are on the node that is killed, and then on the late one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from hpo.checkpoints import CheckpointStore
from hpo.cluster.driver import Driver
from hpo.result import read_best
from hpo.study import Study
from tests.integration.command import journal
from tests.integration.ray_cluster import joined_cluster
from tests.integration.test_cluster import Silent
from tests.one_worker import make_spec, sqlite, start

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_TRIALS = 4
MAX_STEPS = 10


@pytest.fixture
def cluster(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("HPO_CACHE", str(tmp_path / "cache"))
    with joined_cluster() as cluster:
        yield cluster


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


class Nodes(Silent):
    """Kills a node while trials train on it, then adds one; notes which host lived on which node."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._doomed = cluster.add_node(num_cpus=1, num_gpus=1)
        self.killed = raylet_of(self._doomed)
        self.late: int | None = None
        self.raylets: dict[int, int] = {}

    def tick(self) -> None:
        """Look, and act when it is time; called on the driver's thread, where nodes may be made."""
        for pid in {int(str(x["pid"])) for x in journal(self._folder)} - self.raylets.keys():
            with contextlib.suppress(psutil.NoSuchProcess):
                self.raylets[pid] = psutil.Process(pid).ppid()
        if self.late is None and self._is_in_mid_trial():
            self._cluster.remove_node(self._doomed, allow_graceful=False)
            self.late = raylet_of(self._cluster.add_node(num_cpus=1, num_gpus=1))

    def _is_in_mid_trial(self) -> bool:
        there = {pid for pid, raylet in self.raylets.items() if raylet == self.killed}
        newest = {line["trial"]: line for line in journal(self._folder)}
        return any(x["pid"] in there and 3 <= int(x["step"]) <= 6 for x in newest.values())


def test_a_node_is_killed_in_mid_trial_and_one_joins_late_and_nothing_is_lost(
    tmp_path: Path, cluster: Cluster, s3: str
) -> None:
    fixed = {"max_steps": MAX_STEPS, "step_s": 0.05, "journal": str(tmp_path / "journal.jsonl")}
    output = f"s3://bucket/nodes-{time.time_ns()}{s3}"
    spec = make_spec(
        tmp_path,
        fixed=fixed,
        resources={"gpu": 0.5},
        pruner={"type": "none"},
        output_dir=output,
    )
    record = start(spec, sqlite(tmp_path))
    study = Study(record, NUM_TRIALS)
    nodes = Nodes(cluster, tmp_path)
    outcome = Driver(study, nodes).run()
    study.close()
    assert not outcome.early, outcome
    trials = record.trials()
    assert [(t.number, t.state, t.message) for t in trials] == [
        (n, "COMPLETE", None) for n in range(NUM_TRIALS)
    ]
    for trial in trials:
        assert [said["step"] for said in trial.reports.values()] == list(range(1, MAX_STEPS + 1))
    on_killed = {pid for pid, raylet in nodes.raylets.items() if raylet == nodes.killed}
    interrupted = check_no_saved_step_was_trained_again(tmp_path, on_killed)
    assert interrupted, "the node was killed in mid-trial"
    late = {pid for pid, raylet in nodes.raylets.items() if raylet == nodes.late}
    assert any(x["pid"] in late and x["what"] == "step" for x in journal(tmp_path)), "it helped"
    assert not list((tmp_path / "runs").glob("*")), "nothing lies where the URL is not"
    best = record.best()
    assert best is not None
    store = CheckpointStore.of_study(output, "s")
    assert read_best(store)["number"] == best.number
    assert store.at_step(best.number, best.best_step).step == best.best_step


def check_no_saved_step_was_trained_again(folder: Path, dead: set[int]) -> set[int]:
    """Check that trials went on from their newest checkpoint; return those that had to.

    Each step is a validation and saves a checkpoint, so that only one that was not saved yet, the
    last one before the kill, may come twice.
    """
    interrupted: set[int] = set()
    reached: dict[int, dict[str, Any]] = {}
    for line in journal(folder):
        number = int(str(line["trial"]))
        last = reached.get(number)
        if line["what"] == "add" and last is not None:
            assert line["step"] in (last["step"], last["step"] - 1), (line, last)
            assert line["step"] > 0, "not from its beginning"
            if last["pid"] in dead and line["pid"] not in dead:
                interrupted.add(number)
        elif line["what"] == "step" and last is not None:
            assert line["step"] == last["step"] + 1, (line, last)
        reached[number] = line
    assert all(line["step"] == MAX_STEPS for line in reached.values())
    return interrupted
