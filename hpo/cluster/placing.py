"""Where the host of a device is found: by its name, or made there by the driver."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hpo.cluster.host_actor import ModelHostActor
from hpo.cluster.messages import HostSetup

_HOST = ray.remote(ModelHostActor)  # Ray makes a class of it, a millisecond's work: once

MAX_CALLS = 1000  # threads of a host that may wait for reports at once


def cpu(number: int) -> str:
    """Return the name of what one host of a node without a GPU computes on: a part of its cores."""
    return f"cpu{number}"


def host_name(run_id: str, node_id: str, device: str) -> str:
    """Return the name under which the one host of a device is found."""
    return f"hpo-host-{run_id}-{node_id}-{device}"


def host_on(node_id: str, device: str, run_id: str, setup: HostSetup) -> Any:
    """Return the one host of a device; it is made if there is none.

    Args:
        node_id: Ray's.
        device: Ids of GPUs with commas between, or what ``cpu`` returns.
        run_id: Of the driver's run.
        setup: What the host is made of.
    """
    gpus = None if device.startswith("cpu") else device
    return _HOST.options(
        name=host_name(run_id, node_id, device),
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        num_gpus=0,
        max_concurrency=MAX_CALLS,
        # Outside the trials' placement groups: in one, the host would die with it.
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    ).remote(setup, gpus)
