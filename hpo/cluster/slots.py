"""How many trials a cluster holds, and what each one asks of it. Pure: given the nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SLIVER_OF_CPU = 0.001
"""A host with a GPU computes little on the cores, but Ray refuses a request of nothing."""

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Node:
    """What a node has in all, used or not."""

    cpus: float
    gpus: float


def nodes_of(described: Sequence[Mapping[str, object]]) -> list[Node]:
    """Return the nodes that are alive, from `ray.nodes()`."""
    nodes = []
    for node in described:
        resources = node["Resources"]
        if node["Alive"] and isinstance(resources, dict):
            nodes.append(Node(float(resources.get("CPU", 0)), float(resources.get("GPU", 0))))
    return nodes


def num_slots(nodes: Sequence[Node], gpu: float) -> int:
    """Return how many trials of ``gpu`` GPUs each fit on the nodes at once.

    Where no node has a GPU, ``gpu`` is the share of a node, all of it at most.
    """
    if any(node.gpus for node in nodes):
        if gpu > 1:
            return sum(int(node.gpus / gpu + _ROUNDING) for node in nodes)
        return sum(int(node.gpus) * int(1 / gpu + _ROUNDING) for node in nodes)
    return sum(int(1 / min(gpu, 1.0) + _ROUNDING) for node in nodes if node.cpus)


def request(nodes: Sequence[Node], gpu: float) -> dict[str, float]:
    """Return what one trial asks Ray for."""
    if any(node.gpus for node in nodes):
        return {"cpu": SLIVER_OF_CPU, "gpu": gpu}
    fewest = min((node.cpus for node in nodes if node.cpus), default=1.0)
    return {"cpu": int(fewest * min(gpu, 1.0) * 1000) / 1000, "gpu": 0}
