"""What Tune sees of a trial: a thin actor that holds its place and passes on its reports.

Imports no torch. It asks the host on its device for the trial's next report, and makes that host if
it is the first one there. Reused for the next trial.
"""

from __future__ import annotations

import os
import time
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hpo.cluster.host import ModelHost
from hpo.cluster.messages import HostSetup, Word

POLL_S = 5.0
MAX_HOSTS_LOST = 5
REPLACE_HOST_S = 1.0
MAX_CALLS = 1000  # threads of a host that may wait for reports at once

WORD = "word"

# Ray hides every GPU from an actor that asks for none; the host's are named by its proxy.
_KEEP_DEVICE = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def host_name(run_id: str, node_id: str, device: str) -> str:
    """Return the name under which the one host of a device is found."""
    return f"hpo-host-{run_id}-{node_id}-{device}"


class TrialProxy(tune.Trainable):
    """One trial, or one after the other, on the device that Ray gave this actor.

    Its config: ``number``, ``config`` (the trainer's), ``setup`` (HostSetup), ``run_id``.
    """

    _host: Any = None
    _key: int | None = None

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial; the first step joins the host of this device."""
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave with the last trial and join with the next."""
        self._leave()
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return what the host says next of the trial; a lost host is replaced."""
        while True:
            try:
                if self._host is None:
                    self._join()
                word: Word | None = ray.get(self._host.next_word.remote(self._number, POLL_S))
            except RayActorError:
                self._host = None
                self._hosts_lost += 1
                if self._hosts_lost > MAX_HOSTS_LOST:
                    raise
                time.sleep(REPLACE_HOST_S)  # its name is free when Ray has noticed, too
                continue
            if word is not None:
                return {WORD: word, "number": self._number}

    def cleanup(self) -> None:
        """Leave the host."""
        self._leave()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: the host has written a checkpoint before the report left."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: the host looks for the newest checkpoint by itself."""

    def _take(self, config: dict[str, Any]) -> None:
        self._number = int(config["number"])
        self._trial_config = config["config"]
        self._setup: HostSetup = config["setup"]
        self._run_id = str(config["run_id"])
        self._hosts_lost = 0
        self._host = None

    def _join(self) -> None:
        device = ",".join(str(gpu) for gpu in sorted(ray.get_gpu_ids())) or "cpu"
        node_id = ray.get_runtime_context().get_node_id()
        environment = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}  # Ray's default is 1
        if device != "cpu":
            environment |= {"CUDA_VISIBLE_DEVICES": device, **_KEEP_DEVICE}
        self._host = (
            ray.remote(ModelHost)
            .options(
                name=host_name(self._run_id, node_id, device),
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                num_gpus=0,
                max_concurrency=MAX_CALLS,
                # Outside the proxy's placement group: in it, the host would die with its maker.
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
                runtime_env={"env_vars": environment},
            )
            .remote(self._setup, "auto")
        )
        self._key = ray.get(self._host.join.remote(self._number, self._trial_config))

    def _leave(self) -> None:
        if self._host is None:
            return
        try:
            ray.get(self._host.leave.remote(self._number, self._key))
        except RayActorError:  # a host that is gone holds no trial
            return
