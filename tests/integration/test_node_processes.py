"""Which processes a Ray is made of that a run starts for itself."""

from __future__ import annotations

import re
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
    with ray_session(None, "r", 1, signals, lambda said: None, lambda: None):
        first = Asked.remote()
        assert ray.get(first.works.remote())  # in the one that was started early
        started = [p for p in psutil.Process().children(recursive=True) if "ray::" in p.name()]
        print("workers", sum("Agent" not in process.name() for process in started))
        assert ray.get(Asked.options(runtime_env={"env_vars": {"A": "1"}}).remote().works.remote())
        for process in psutil.Process().children(recursive=True):
            print(process.name(), *process.cmdline())
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_starts_no_process_of_ray_that_it_never_asks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIST],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "gcs_server" in done.stdout
    assert "raylet" in done.stdout
    unasked = re.findall(r"\S*/(?:monitor|log_monitor|dashboard)\.py", done.stdout)
    assert not unasked, done.stdout
    assert "workers 1\n" in done.stdout
