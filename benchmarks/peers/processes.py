"""Processes of one recipe, side by side. Standard library only, so that the first one is light."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from workload import Arguments

WAIT_S = 0.05


def run_workers(script: str, arguments: Arguments) -> None:
    """Run ``script`` as many times as trials run side by side, each as another worker.

    Args:
        script: A file beside this one; is given the same arguments and its number.
        arguments: Of the recipe.

    Raises:
        SystemExit: One failed; the others are ended.
    """
    path = Path(__file__).resolve().parent / script
    command = [sys.executable, str(path), str(arguments.given), str(arguments.out), "--worker"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}  # the model is a folder
    running = [
        subprocess.Popen([*command, str(worker)], env=environment)
        for worker in range(arguments.workload.concurrency)
    ]
    try:
        while running:
            codes = [process.poll() for process in running]
            if any(codes):
                raise SystemExit(f"{script} failed")
            running = [p for p, code in zip(running, codes, strict=True) if code is None]
            time.sleep(WAIT_S)
    finally:
        for process in running:
            process.kill()
