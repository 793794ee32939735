"""Leaves out, of the Ray that a run starts for itself, the processes that nobody here would ask.

That are the one that adds machines to a cluster, the dashboard's server (without the dashboard it only
counts Ray's users), and the one that shows the workers' output to the driver, which we read from its
files. Each takes two thirds of a second of a processor while a run starts, and 50 MiB as long as it
lasts. Ray has options for none of this in ``ray.init``. Seen in Ray 2.60, ``Node.start_head_processes``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ray._private.node import Node

from hpo.cluster.replaced import replaced

UNASKED = ("start_monitor", "start_api_server", "start_log_monitor")


@contextlib.contextmanager
def only_what_is_asked(wanted: bool) -> Iterator[None]:
    """Within this, ``ray.init`` starts no process but those that hold and run actors.

    Args:
        wanted: False for a cluster that is joined, of which nothing is ours.
    """
    with contextlib.ExitStack() as left_out:
        if wanted:
            for start in UNASKED:
                left_out.enter_context(replaced(Node, start, _start_nothing))
        yield


def _start_nothing(node: Node, **arguments: object) -> None:
    """Take the place of a method that starts a process."""
