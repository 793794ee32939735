"""Which processes a Ray is made of that a run starts for itself."""

from __future__ import annotations

import pytest

from tests.new_process import printed_by

LIST = """
import psutil, ray
from hpo.cluster.session import ray_session
from hpo.cluster.signals import Signals

@ray.remote
class Asked:
    def works(self):
        return True

with Signals() as signals:
    with ray_session(None, "r", signals, lambda said: None):
        first = Asked.remote()
        assert ray.get(first.works.remote())
        for process in psutil.Process().children(recursive=True):
            print(process.name(), *process.cmdline())
        raylet, = (p for p in psutil.Process().children() if p.name() == "raylet")
        agents = [p for p in raylet.children() if p.name() == "cat"]
        raylet.kill()
        psutil.wait_procs(agents, timeout=20)
        print("agents left", sum(agent.is_running() for agent in agents), "of", len(agents))
"""

WITH_AN_ENVIRONMENT = """
import os, ray
from hpo.cluster.session import ray_session
from hpo.cluster.signals import Signals

@ray.remote
def seen():
    return os.environ.get("HPO_TESTS_ENVIRONMENT")

with Signals() as signals:
    with ray_session(None, "r", signals, lambda said: None):
        print(ray.get(seen.remote()))
"""


def environment_of_the_site(environment: object) -> dict[str, object]:
    """A hook that gives every run of Ray an environment."""
    return {"env_vars": {"HPO_TESTS_ENVIRONMENT": "the site's"}}


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_that_has_an_environment_of_rays_gets_it() -> None:
    hook = f"{__name__}.environment_of_the_site"
    assert printed_by(WITH_AN_ENVIRONMENT, RAY_RUNTIME_ENV_HOOK=hook) == "the site's"


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_starts_no_process_of_ray_that_it_never_asks_and_none_outlives_the_raylet() -> None:
    printed = printed_by(LIST)
    names = sorted(line.split()[0] for line in printed.splitlines()[:-1])
    assert names == ["cat", "cat", "gcs_server", "ray::Asked", "raylet"], printed
    assert printed.endswith("agents left 0 of 2")
