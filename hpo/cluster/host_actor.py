"""A model's host as Ray runs it: with its part of the node's cores, and its notes beside Ray's logs."""

from __future__ import annotations

import os

from hpo.cluster.host import ModelHost
from hpo.cluster.messages import HostSetup
from hpo.cluster.on_node import notes_folder


class ModelHostActor(ModelHost):
    """The host of one device of this node."""

    def __init__(self, setup: HostSetup, has_gpu: bool) -> None:
        """Begin to load.

        Args:
            setup: What the trainer is made of.
            has_gpu: Hosts with a GPU each compute little on the cores; those without divide them.
        """
        num_cores = len(os.sched_getaffinity(0)) // (1 if has_gpu else setup.cpu_hosts)
        super().__init__(setup, "auto", max(1, num_cores), notes=notes_folder())
