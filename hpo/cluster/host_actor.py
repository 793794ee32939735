"""A model's host as Ray runs it: with its part of the node, and its notes beside Ray's logs."""

from __future__ import annotations

import os

from hpo.cluster.host import ModelHost
from hpo.cluster.messages import HostSetup
from hpo.cluster.on_node import notes_folder


class ModelHostActor(ModelHost):
    """The host of one device of this node."""

    def __init__(self, setup: HostSetup, gpus: str | None) -> None:
        """Begin to load.

        Args:
            setup: What the trainer is made of.
            gpus: The ids of its own, with commas between. None: hosts without one divide the cores.
        """
        num_cores = len(os.sched_getaffinity(0)) // (setup.cpu_hosts if gpus is None else 1)
        if gpus is not None:
            # Nothing has asked for a GPU yet. An environment given to Ray would take another process.
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus
        super().__init__(setup, "auto", max(1, num_cores), notes=notes_folder())
