"""Leaves out, of the Ray that a run starts for itself, the processes that nobody here would ask.

That are the one that adds machines to a cluster, the dashboard's server (without the dashboard it only
counts Ray's users), and the one that shows the workers' output to the driver, which we read from its
files. Of the node's two agents the one that serves the dashboard, and the one that makes environments
unless the run has one (under ``uv run``, in a job of Ray's, by a hook of the site). And the workers that
Ray starts early, one for each core: only hosts use one, and ``ray.init`` would wait for them. Each takes
two thirds of a second of a processor while a run starts, and 50 MiB as long as it lasts. Ray has options
for none of this in ``ray.init``. Seen in Ray 2.60, ``Node.start_head_processes``,
``services.start_raylet``, ``worker.init``, and for the agents ``DashboardAgent.__init__``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from ray import _raylet
from ray._private import services, worker
from ray._private.node import Node

from hpo.cluster.replaced import replaced

UNASKED = ("start_monitor", "start_api_server", "start_log_monitor")

EARLY_WORKERS = "--num_prestart_python_workers"
OF_ENVIRONMENTS = "--runtime_env_agent_command"

_RAYLET: Any = _raylet  # it has no types for these
AGENTS = {
    "--dashboard_agent_command": (
        _RAYLET.METRICS_AGENT_PORT_NAME,
        _RAYLET.METRICS_EXPORT_PORT_NAME,
        _RAYLET.DASHBOARD_AGENT_LISTEN_PORT_NAME,
    ),
    OF_ENVIRONMENTS: (_RAYLET.RUNTIME_ENV_AGENT_PORT_NAME,),
}
"""By the raylet's option: the ports that it waits for until it knows them."""

IN_ITS_PLACE = "cat"
"""The raylet insists on agents that live as long as itself. Their standard input ends with it."""

NOT_IN_USE = -1
"""A port, as the agent of a Ray without a dashboard says it."""


@contextlib.contextmanager
def only_what_is_asked(wanted: bool) -> Iterator[None]:
    """Within this, ``ray.init`` starts no process but those that hold actors.

    Args:
        wanted: False for a cluster that is joined, of which nothing is ours.
    """
    with contextlib.ExitStack() as left_out:
        if wanted:
            for start in UNASKED:
                left_out.enter_context(replaced(Node, start, _start_nothing))
            unasked = set(AGENTS)
            modify, popen = worker._maybe_modify_runtime_env, services.ConsolePopen

            def modify_noted(*args: Any) -> Any:
                environment = modify(*args)
                if environment:
                    unasked.discard(OF_ENVIRONMENTS)
                return environment

            def popen_with_little(command: Sequence[str], *args: Any, **options: Any) -> Any:
                return popen(_with_little(command, unasked), *args, **options)

            # What the run's environment is, is settled before the first process is started.
            left_out.enter_context(replaced(worker, "_maybe_modify_runtime_env", modify_noted))
            left_out.enter_context(replaced(services, "ConsolePopen", popen_with_little))
        yield


def _with_little(command: Sequence[str], unasked: Collection[str]) -> Sequence[str]:
    """Return a command; if it is the raylet's, so that it starts no early workers and no such agents."""
    parts = [part.partition("=") for part in command]
    given = {name: value for name, _, value in parts}
    if not given.keys() >= {EARLY_WORKERS, *AGENTS}:
        return command
    for port in (port for agent in unasked for port in AGENTS[agent]):
        _RAYLET.persist_port(given["--session_dir"], given["--node_id"], port, NOT_IN_USE)
    instead = {EARLY_WORKERS: "0", **dict.fromkeys(unasked, IN_ITS_PLACE)}
    return [f"{name}{between}{instead.get(name, value)}" for name, between, value in parts]


def _start_nothing(node: Node, **arguments: object) -> None:
    """Take the place of a method that starts a process."""
