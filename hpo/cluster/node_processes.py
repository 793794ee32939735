"""Leaves out, of the Ray that a run starts for itself, the processes that nobody here would ask.

That are the one that adds machines to a cluster, the dashboard's server (without the dashboard it only
counts Ray's users), and the one that shows the workers' output to the driver, which we read from its
files. The two agents of the node: one serves the dashboard, one makes the environments of their own that
our actors do not ask for. And the workers that Ray starts early, one for each core: only hosts use one,
and ``ray.init`` would wait for them. Each takes two thirds of a second of a processor while a run starts,
and 50 MiB as long as it lasts. Ray has options for none of this in ``ray.init``. Seen in Ray 2.60,
``Node.start_head_processes``, ``services.start_raylet``, and for the agents ``DashboardAgent.__init__``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from ray import _raylet
from ray._private import services
from ray._private.node import Node

from hpo.cluster.replaced import replaced

UNASKED = ("start_monitor", "start_api_server", "start_log_monitor")

INSTEAD = {
    "--num_prestart_python_workers": "0",
    # The raylet insists on agents that live as long as itself. Their standard input ends with it.
    "--dashboard_agent_command": "cat",
    "--runtime_env_agent_command": "cat",
}
"""What the raylet is started with."""

_RAYLET: Any = _raylet  # it has no types for these
AGENTS_PORTS = (
    _RAYLET.METRICS_AGENT_PORT_NAME,
    _RAYLET.METRICS_EXPORT_PORT_NAME,
    _RAYLET.DASHBOARD_AGENT_LISTEN_PORT_NAME,
    _RAYLET.RUNTIME_ENV_AGENT_PORT_NAME,
)
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
            popen = services.ConsolePopen

            def popen_with_little(command: Sequence[str], *args: Any, **options: Any) -> Any:
                return popen(_with_little(command), *args, **options)

            left_out.enter_context(replaced(services, "ConsolePopen", popen_with_little))
        yield


def _with_little(command: Sequence[str]) -> Sequence[str]:
    """Return a command; if it is the raylet's, so that it starts no workers and no agents by itself."""
    parts = [part.partition("=") for part in command]
    given = {name: value for name, _, value in parts}
    if not given.keys() >= INSTEAD.keys():
        return command
    for port in AGENTS_PORTS:  # the raylet waits until it knows them
        _RAYLET.persist_port(given["--session_dir"], given["--node_id"], port, NOT_IN_USE)
    return [f"{name}{between}{INSTEAD.get(name, value)}" for name, between, value in parts]


def _start_nothing(node: Node, **arguments: object) -> None:
    """Take the place of a method that starts a process."""
