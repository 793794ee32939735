"""What a process that died has left in Ray's logs of its node, and what that says of the cause."""

from __future__ import annotations

import re
from pathlib import Path

DIED = "its host process died"

OUTPUT_BYTES = 6000
"""So much of what a process wrote is kept; a traceback of each thread fits."""

_TELLING = re.compile(
    r"^.*(Fatal Python error: .+|CUDA error: .+|terminate called .+|Assertion .+ failed.*)$", re.M
)
_NOISE = re.compile(r"^:(actor_name|job_id|task_name):.*\n?", re.M)


def pid_in(error: str) -> int | None:
    """Return which process Ray means by an error, if it says."""
    found = re.search(r"^\s*pid: (\d+)$", error, re.M)
    return None if found is None else int(found[1])


def output_of(logs: Path, pid: int | None) -> str:
    """Return the end of what a worker of Ray wrote to stdout and stderr."""
    if pid is None:
        return ""
    parts = []
    for path in sorted(logs.glob(f"worker-*-{pid}.*")):
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - OUTPUT_BYTES))
            text = _NOISE.sub("", file.read().decode(errors="replace")).strip()
        if text:
            parts.append(text)
    return "\n".join(parts)


def cause_of(cause: str, output: str) -> str:
    """Return why a process died: what its last output says, if it says anything."""
    if cause != DIED:
        return cause
    found = _TELLING.findall(output)
    if found:
        return f"{DIED}: {found[-1].strip()}"
    return f"{DIED} without a word (kill -9, or the kernel when memory ran out)"
