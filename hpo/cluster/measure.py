"""`resources: {gpu: auto}`: measures on one device how many trials share it, before the search.

One Ray actor loads the base model and asks its trainer; it is gone before the first trial begins.
"""

from __future__ import annotations

import itertools
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from hpo.cluster.messages import HostSetup
from hpo.cluster.slots import Node
from hpo.errors import HpoError, TrainerError
from hpo.lookup import find_trainer
from hpo.proposals import config_digest
from hpo.spec import StudySpec
from hpo.spec_checks import configs
from trainers.protocol import Capacity

MOST_TRIALS = 8
"""A pass hardly gets faster by more, and trials that begin together learn nothing from each other:
the sampler proposes them blind, and the pruner has nobody to compare the first with."""

NUM_CONFIGS = 32
"""So many different ones are looked at; few are trained."""

POLL_S = 0.2

LAST_S = 10.0
"""So long a busy machine may take to end a process."""

_FINEST_SHARE = 10_000  # Ray counts shares of a GPU in these


def find_share(
    spec: StudySpec,
    setup: HostSetup,
    nodes: Sequence[Node],
    say: Callable[[str], None],
    is_ending: Callable[[], bool],
) -> float:
    """Return the part of a device that each trial of a study gets, and tell the user why.

    Args:
        spec: With `gpu: auto`.
        setup: Makes the trainer.
        nodes: Of the cluster.
        say: Told in one line each.
        is_ending: Whether the run is to end; asked several times a second.

    Raises:
        TrainerError: The trainer cannot be made, or not with these configs.
    """
    sampled = samples(spec)
    problem = sharing_problem(spec, sampled)
    if problem is not None:
        say(f"gpu: auto: one trial a device: {problem}")
        return 1.0
    say("gpu: auto: measuring how many trials share a device")
    capacity = measured(setup, nodes, sampled, is_ending)
    if capacity is None:
        return 1.0
    has_gpus = any(node.gpus for node in nodes)
    if not has_gpus:
        capacity = beside_copies(capacity, spec.resources.cpu_hosts - 1)
    num_trials = min(capacity.num_trials, MOST_TRIALS)
    say(described(capacity, num_trials, has_gpus))
    return share_of(num_trials)


def beside_copies(capacity: Capacity, num_copies: int) -> Capacity:
    """Return how many trials fit beside so many more copies of the base model."""
    if capacity.base_gib is None or not capacity.trial_gib:
        return capacity
    taken = math.ceil(num_copies * capacity.base_gib / capacity.trial_gib)
    return replace(capacity, num_trials=max(1, capacity.num_trials - taken))


def share_of(num_trials: int) -> float:
    """Return the part of a device that each of so many trials asks Ray for: never too much."""
    return math.floor(_FINEST_SHARE / num_trials) / _FINEST_SHARE


def samples(spec: StudySpec) -> list[dict[str, object]]:
    """Return configs as a study's trials may have them: the enqueued ones, then some of the space."""
    space = spec.search_space
    enqueued = (space.resolve(params) for params in space.enqueued)
    drawn = (values for values in configs(space) if not space.violated(values))
    found: dict[str, dict[str, object]] = {}
    for values in itertools.chain(enqueued, drawn):
        config = {**spec.fixed, **values}
        found.setdefault(config_digest(config), config)
        if len(found) == NUM_CONFIGS:
            break
    return list(found.values())


def sharing_problem(spec: StudySpec, sampled: Sequence[dict[str, object]]) -> str | None:
    """Return why the trials of a study cannot share a device, if one of these cannot."""
    options = find_trainer(spec.trainer).Options
    for config in sampled:
        try:
            problem = options.model_validate(config).sharing_problem()
        except ValidationError:  # the trial will say so
            continue
        if problem is not None:
            return problem
    return None


def measured(
    setup: HostSetup,
    nodes: Sequence[Node],
    sampled: Sequence[dict[str, object]],
    is_ending: Callable[[], bool],
) -> Capacity | None:
    """Return how many trials fit on one device of the cluster; None if the run is to end meanwhile.

    Raises:
        TrainerError: The trainer cannot be made, or not with these configs.
    """
    import ray
    from ray.exceptions import RayActorError

    wanted: dict[str, Any] = {"num_cpus": 0, "num_gpus": 1}
    if not any(node.gpus for node in nodes):
        cores = int(min(node.cpus for node in nodes if node.cpus))
        wanted = {"num_cpus": cores, "num_gpus": 0}
    probe = ray.remote(_Probe).options(**wanted).remote()
    answer = probe.capacity.remote(setup, sampled)
    try:
        while not ray.wait([answer], timeout=POLL_S)[0]:
            if is_ending():
                return None
        found: Capacity | str = ray.get(answer)
    except RayActorError:  # the kernel ends a process that takes too much memory
        return Capacity(1)
    finally:
        ray.kill(probe)
        ray.wait([answer], timeout=LAST_S)  # until it is dead: it would outlive a cluster that ends
    if isinstance(found, str):
        raise TrainerError(found)
    return found


def described(capacity: Capacity, num_trials: int, has_gpus: bool) -> str:
    """Return what was measured, for the user."""
    device = "a GPU" if has_gpus else "a machine"
    count = f"{num_trials} trials share {device}" if num_trials > 1 else f"one trial on {device}"
    if capacity.trial_gib is None or capacity.base_gib is None:
        return f"gpu: auto: {count} (what a trial takes could not be measured here)"
    total = "" if capacity.total_gib is None else f"; {capacity.total_gib:.3g} GiB in all"
    more = ""
    if capacity.num_trials > num_trials:
        more = f"; {capacity.num_trials} would fit, but more than {MOST_TRIALS} gain nothing"
    return (
        f"gpu: auto: {count} (one takes {capacity.trial_gib:.3g} GiB beside a base model of "
        f"{capacity.base_gib:.3g} GiB{total}{more})"
    )


class _Probe:
    """The actor: a trainer that is asked once."""

    def capacity(self, setup: HostSetup, sampled: Sequence[dict[str, object]]) -> Capacity | str:
        """Return what the trainer says, or what is wrong with it."""
        sys.path += [folder for folder in setup.import_path if folder not in sys.path]
        try:
            return find_trainer(setup.trainer)(setup.fixed, "auto").capacity(sampled)
        except (HpoError, ValueError) as error:
            return str(error)
        except Exception:
            return f"the capacity of a device cannot be measured:\n{traceback.format_exc()}"
