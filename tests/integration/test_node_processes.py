"""Which processes a Ray is made of that a run starts for itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.integration.command import ROOT

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


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_starts_no_process_of_ray_that_it_never_asks_and_none_outlives_the_raylet() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIST],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    names = sorted(line.split()[0] for line in done.stdout.splitlines()[:-1])
    assert names == ["cat", "cat", "gcs_server", "ray::Asked", "raylet"], done.stdout
    assert "agents left 0 of 2\n" in done.stdout
