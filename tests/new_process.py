"""Runs code in a Python process of its own, which has loaded nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.integration.command import ROOT


def printed_by(code: str, **environment: str) -> str:
    """Return what code prints on stdout; it must end without an error."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()
