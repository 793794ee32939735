"""A Ray cluster of several nodes on this machine, which this process has joined as a driver would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
from ray.cluster_utils import Cluster

from hpo.cluster.session import NAMESPACE
from tests.integration.command import ROOT


@contextmanager
def joined_cluster(*, num_gpus: int = 0, others: Sequence[int] = ()) -> Iterator[Cluster]:
    """Start a head with two cores and so many simulated GPUs, and a node for each of ``others``."""
    head = {"num_cpus": 2, "num_gpus": num_gpus, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for gpus in others:
            cluster.add_node(num_cpus=2, num_gpus=gpus)
        ray.init(
            address=cluster.address,
            namespace=NAMESPACE,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
