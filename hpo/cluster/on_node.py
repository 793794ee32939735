"""What the driver asks of a node beside its hosts: which GPUs a place has, what a dead host has left.

On its own node it looks by itself; elsewhere a task of Ray does. None needs torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from hpo.cluster import last_words
from hpo.cluster.seats import Note, read_note


def done_on(node_id: str, do: Callable[..., Any], *args: Any) -> Any:
    """Return the future of what a function of this module returns on a node.

    It raises one of Ray's errors if the node is lost.
    """
    if node_id == ray.get_runtime_context().get_node_id():
        return ray.put(do(*args))
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(do).options(num_cpus=0, scheduling_strategy=there).remote(*args)


def gpus_of(group: PlacementGroup, request: dict[str, float]) -> Any:
    """Return the future of the GPUs that a place has: their ids, with commas between."""
    inside = PlacementGroupSchedulingStrategy(group, 0)
    task = ray.remote(_gpu_ids).options(
        num_cpus=request.get("CPU", 0), num_gpus=request["GPU"], scheduling_strategy=inside
    )
    return task.remote()


def _gpu_ids() -> str:
    return ",".join(str(gpu) for gpu in sorted(ray.get_gpu_ids()))


def notes_folder() -> Path:
    """Return where the hosts of this node keep their notes."""
    return _session() / "hpo-stays"


def left_by(name: str, pid: int | None) -> tuple[Note | None, str, str]:
    """Return what a host has left of a stay: its note, the end of what it wrote, and in which folder.

    Args:
        name: Of the note; it goes.
        pid: The host's process; None if nobody knows.
    """
    path = notes_folder() / name
    logs = _session() / "logs"
    note = read_note(path)
    path.unlink(missing_ok=True)
    return note, last_words.output_of(logs, pid), str(logs)


def end_process(pid: int) -> None:
    """Kill a process of this node. Ray gives a frozen one five seconds more."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _session() -> Path:
    # Ray has no public name for the folder in which it keeps this node's logs.
    return Path(ray._private.worker._global_node.get_session_dir_path())
