"""A trial's log: one JSON line a step and a validation, for people and for plots.

Not the truth: a study resumes without it. After a crash, steps that are trained again replace the
lines that they had.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from trainers.protocol import Report

LOG_FILE = "metrics.jsonl"


def append(folder: Path, report: Report, verdict: str) -> None:
    """Add a report's step lines, and its validation, to the log in a trial's folder."""
    lines: list[Mapping[str, object]] = [{"kind": "step", **line} for line in report.step_lines]
    said = {"validation": report.validation, "step": report.step, **report.metrics}
    lines.append({"kind": "validation" if report.metrics else "end", **said, "verdict": verdict})
    if report.message:
        lines.append({"kind": "message", "step": report.step, "text": report.message})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOG_FILE
    first = min((_step(line) for line in report.step_lines), default=None)
    kept = read(folder) if first is not None else []
    if first is not None and kept and _step(kept[-1]) >= first:
        rest = [line for line in kept if _step(line) < first]
        path.write_text("".join(json.dumps(line) + "\n" for line in rest), encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def read(folder: Path) -> list[dict[str, object]]:
    """Return the log's lines, oldest first; a torn last line is passed over."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for text in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
    return lines


def _step(line: Mapping[str, object]) -> int:
    step = line.get("step", 0)
    return int(step) if isinstance(step, int | float) else 0
