"""Keeps the Ray that a run starts for itself within this machine.

Ray's servers (object manager, workers, GCS) run whatever they are sent. On Linux they listen on every
network address unless the node's own is 127.0.0.1, and ``ray.init`` turns that address, if it is given,
into an outer one. What decides is Ray's switch for machines that are no cluster, which is on where
firewalls would ask (macOS, Windows). Seen in Ray 2.60, ``services.resolve_ip_for_localhost``; can go when
``ray.init`` takes a loopback address.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ray._private import ray_constants

from hpo.cluster.replaced import replaced


@contextlib.contextmanager
def on_loopback(wanted: bool) -> Iterator[None]:
    """Within this, ``ray.init`` starts servers that nobody beyond this machine can reach.

    Args:
        wanted: False for a cluster that is joined, whose nodes must reach this one.
    """
    if not wanted:
        yield
        return
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    variable = os.environ.get(name)
    os.environ[name] = "0"  # for its processes
    try:
        with replaced(ray_constants, "ENABLE_RAY_CLUSTER", False):  # for ours
            yield
    finally:
        if variable is None:
            del os.environ[name]
        else:
            os.environ[name] = variable
