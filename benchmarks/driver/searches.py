"""Whole searches on fake trials: driver, Tune and hosts as they are, on simulated nodes.

The processes of all nodes share this machine's cores, so a search here costs at least as much as on a
cluster of real ones.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.conditions import ROOT
from benchmarks.driver import fake
from hpo.cluster.driver import Driver
from hpo.cluster.session import NAMESPACE
from hpo.spec import StudySpec
from hpo.studies import create_study
from hpo.study import Claim, Study
from trainers.protocol import Report

SPACE = {
    "x": {"type": "float", "low": -1.0, "high": 1.0},
    "y": {"type": "int", "low": 1, "high": 1_000_000},
}


@dataclass(frozen=True)
class Event:
    """What happened to a trial on its host.

    Attributes:
        what: loaded, added, stepped, ended or removed.
        trial: Its number.
        step: Optimizer steps done.
        host: Of which process.
        at: By the clock, in seconds since 1970.
    """

    what: str
    trial: int
    step: int
    host: int
    at: float


@dataclass(frozen=True)
class Search:
    """What was seen of one search.

    Attributes:
        events: Of all hosts, in order.
        reported_at: When the study had each report, by the clock, in order.
        wall_s: From the driver's begin to its end, Ray not started.
        driver_cpu_s: What the driver's process computed.
    """

    events: tuple[Event, ...]
    reported_at: tuple[float, ...]
    wall_s: float
    driver_cpu_s: float


class _Watch:
    """A progress that notes when reports came."""

    def __init__(self) -> None:
        self.reported_at: list[float] = []

    def began(self, claim: Claim) -> None:
        """Ignore it."""

    def reported(self, number: int, report: Report, over: bool) -> None:
        """Note the moment."""
        self.reported_at.append(time.time())

    def lost(self, number: int, cause: str, over: bool) -> None:
        """Fail: nothing is killed here."""
        raise AssertionError(f"trial {number} was lost: {cause}")

    def noted(self, message: str) -> None:
        """Ignore it."""

    def tick(self) -> None:
        """Ignore it."""


def search(num_trials: int, fixed: Mapping[str, object], gpu: float = 1.0) -> Search:
    """Run a study of fake trials to its end on the nodes that this process has joined.

    Args:
        num_trials: Of the study; sampled at random, none is pruned.
        fixed: Options of the fake trainer.
        gpu: The share of a node that a trial takes.
    """
    with tempfile.TemporaryDirectory(prefix="hpo-bench-") as folder:
        journal = Path(folder) / "journal.jsonl"
        spec = StudySpec.model_validate(
            {
                "study": "fake",
                "trainer": fake.NAME,
                "output_dir": f"{folder}/runs",
                "fixed": {**fixed, "journal": str(journal)},
                "space": SPACE,
                "sampler": {"type": "random"},
                "pruner": {"type": "none"},
                "resources": {"gpu": gpu},
            }
        )
        study = Study(create_study(spec, f"sqlite:///{folder}/hpo.db"), num_trials)
        watch = _Watch()
        began, cpu = time.perf_counter(), time.process_time()
        outcome = Driver(study, watch).run()
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        assert study.is_done, outcome.reason
        study.close()
        return Search(events_in(journal), tuple(watch.reported_at), wall_s, cpu_s)


def events_in(journal: Path) -> tuple[Event, ...]:
    """Return what fake trainers have noted, in order."""
    lines = map(json.loads, journal.read_text(encoding="utf-8").splitlines())
    return tuple(sorted((Event(**line) for line in lines), key=lambda event: event.at))


@contextmanager
def joined_nodes(num_nodes: int) -> Iterator[None]:
    """Start so many simulated nodes of one core each, which this process joins as a driver would."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(num_nodes - 1):
            cluster.add_node(num_cpus=1)
        ray.init(
            address=cluster.address,
            namespace=NAMESPACE,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()
