"""What Tune's actors are, and what reaches them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from ray.air.execution._internal import RayActorManager

from hpo.cluster.actors import Proxies


class Foreign:
    """Of Tune's: whoever unpickles it imports Tune."""

    def __reduce__(self) -> Any:
        raise AssertionError("it is on its way to a proxy")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Ray is asked to start and to call."""
    asked: list[Any] = []
    monkeypatch.setattr(
        RayActorManager,
        "add_actor",
        lambda self, cls, kwargs, resources, **heard: asked.append((cls, kwargs, resources, heard)),
    )
    monkeypatch.setattr(
        RayActorManager,
        "schedule_actor_task",
        lambda self, actor, name, args, kwargs, **heard: asked.append((name, args, kwargs, heard)),
    )
    return asked


CONFIG = {"number": 3, "config": {"lora_r": 8}, "stay": 1}
TUNES = {**CONFIG, "__trial_info__": Foreign(), "__stdout_file__": None}


def test_tune_starts_proxies_and_hands_them_nothing_of_its_own(started: list[Any]) -> None:
    proxies = Proxies(resource_manager=None)
    arguments = {"config": TUNES, "storage": Foreign(), "logger_creator": Foreign()}
    proxies.add_actor("Trainable", arguments, "a GPU", on_start=print)
    ((actor_class, given, resources, heard),) = started
    assert actor_class.__ray_metadata__.class_name == "TrialProxy"
    assert (given, resources, heard) == ({"config": CONFIG}, "a GPU", {"on_start": print})


def test_a_proxy_that_takes_another_trial_gets_nothing_of_tunes_own(started: list[Any]) -> None:
    proxies = Proxies(resource_manager=None)
    proxies.schedule_actor_task("actor", "reset", (TUNES,), {"storage": Foreign()}, on_result=print)
    proxies.schedule_actor_task("actor", "train", (), None, on_error=print)
    assert started == [
        ("reset", (CONFIG,), None, {"on_result": print}),
        ("train", (), None, {"on_error": print}),
    ]


def test_a_proxy_imports_neither_torch_nor_tune() -> None:
    code = (
        "import sys, hpo.cluster.proxy\n"
        "print({'torch', 'ray.tune', 'pandas', 'pyarrow', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
