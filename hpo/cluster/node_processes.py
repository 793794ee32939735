"""Leaves out, of the Ray that a run starts for itself, the processes that nobody here would ask.

That are the one that adds machines to a cluster, the dashboard's server (without the dashboard it only
counts Ray's users), and the one that shows the workers' output to the driver, which we read from its
files. And all but so many of the workers that Ray starts early, one for each core: only hosts use one.
Each takes two thirds of a second of a processor while a run starts, and 50 MiB as long as it lasts. Ray
has options for none of this in ``ray.init``. Seen in Ray 2.60, ``Node.start_head_processes`` and
``services.start_raylet``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ray._private import services
from ray._private.node import Node

from hpo.cluster.replaced import replaced

EARLY_WORKERS = "--num_prestart_python_workers="
UNASKED = ("start_monitor", "start_api_server", "start_log_monitor")


@contextlib.contextmanager
def only_what_is_asked(wanted: bool, num_workers: int) -> Iterator[None]:
    """Within this, ``ray.init`` starts no process but those that hold and run actors.

    Args:
        wanted: False for a cluster that is joined, of which nothing is ours.
        num_workers: That are started early.
    """
    with contextlib.ExitStack() as left_out:
        if wanted:
            for start in UNASKED:
                left_out.enter_context(replaced(Node, start, _start_nothing))
            popen = services.ConsolePopen

            def with_few_workers(command: list[str], *args: Any, **options: Any) -> Any:
                few = f"{EARLY_WORKERS}{num_workers}"
                command = [few if x.startswith(EARLY_WORKERS) else x for x in command]
                return popen(command, *args, **options)

            left_out.enter_context(replaced(services, "ConsolePopen", with_few_workers))
        yield


def _start_nothing(node: Node, **arguments: object) -> None:
    """Take the place of a method that starts a process."""
