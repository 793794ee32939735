"""Under which conditions figures were measured: the commit, the versions, the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
_RESULTS = (":!benchmarks/results", ":!docs/packing.md", ":!docs/benchmarks.md")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "optuna", "ray")


@dataclass(frozen=True)
class Conditions:
    """What a reader needs to measure the same again.

    Attributes:
        commit: Of the repository; ``unknown`` outside of one.
        is_dirty: Whether files differ from that commit, results left out.
        threads: That torch computed with.
        processor: The machine's, and whether it has products in bfloat16.
        cores: That this process may use.
        versions: Of Python and the packages in question.
    """

    commit: str
    is_dirty: bool
    threads: int
    processor: str
    cores: int
    versions: dict[str, str] = field(default_factory=dict)


def find_conditions(threads: int) -> Conditions:
    """Return the conditions of this process."""
    return Conditions(
        commit=_git("rev-parse", "HEAD") or "unknown",
        is_dirty=bool(_git("status", "--porcelain", "--", ".", *_RESULTS)),
        threads=threads,
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        versions={"python": platform.python_version(), **_versions()},
    )


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> str:
    from trainers.lora.model.processor import multiplies_bfloat16

    return _processor_name() + (" with bfloat16" if multiplies_bfloat16() else "")


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
