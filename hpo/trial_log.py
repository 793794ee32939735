"""A trial's log: one JSON line a step and a validation, for people, plots and trackers.

``metrics.jsonl`` has steps, validations, notes, losses of its process and the end; ``samples.jsonl``
what was generated at each validation. Not the truth: a study resumes without them. After a crash,
steps that are trained again replace the lines that they had.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from trainers.protocol import Report

LOG_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
LOST = "lost"
NOTE = "note"

TAIL_BYTES = 1 << 14

Line = Mapping[str, object]


def append(folder: Path, report: Report, verdict: str) -> None:
    """Add a report's step lines, validation, notes and samples to the logs in a trial's folder."""
    lines: list[Line] = [{"kind": "step", **line} for line in report.step_lines]
    said = {"validation": report.validation, "step": report.step, **report.metrics}
    lines.append({"kind": "validation" if report.metrics else "end", **said, "verdict": verdict})
    if report.message:
        lines.append({"kind": "message", "step": report.step, "text": report.message})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOG_FILE
    first = min((_number(line, "step") for line in report.step_lines), default=None)
    if first is not None and _last_step(path) >= first:
        _write(path, [x for x in _read(path) if _number(x, "step") < first or _outlives(x)])
    notes = list(dict.fromkeys(report.notes))
    if notes:
        known = [line.get("text") for line in _read(path) if line.get("kind") == NOTE]
        notes = [note for note in notes if note not in known]
    step = 0 if first is None else max(0, first - 1)
    _add(path, [*({"kind": NOTE, "step": step, "text": note} for note in notes), *lines])
    if report.samples:
        _append_samples(folder, report)


def append_loss(folder: Path, step: int, cause: str, output: str) -> None:
    """Add that a trial's process or node was lost, and the end of what that process wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {"kind": LOST, "step": step, "cause": cause}
    _add(folder / LOG_FILE, [{**line, "output": output} if output else line])


def catch_up(folder: Path, report: Report) -> None:
    """Add a checkpoint's report, unless it was logged before the driver was killed."""
    logged = [line.get("validation") for line in read(folder) if line.get("kind") == "validation"]
    if report.metrics and report.validation not in logged:
        append(folder, report, report.end or "goes on")


def read(folder: Path) -> list[dict[str, object]]:
    """Return the log's lines, oldest first; a torn line is passed over."""
    return _read(folder / LOG_FILE)


def read_samples(folder: Path) -> list[dict[str, object]]:
    """Return what was generated: validation, step, prompt, expected, generated, ..."""
    return _read(folder / SAMPLES_FILE)


def _append_samples(folder: Path, report: Report) -> None:
    path = folder / SAMPLES_FILE
    at = {"validation": report.validation, "step": report.step}
    kept = _read(path)
    if kept and _number(kept[-1], "validation") >= report.validation:
        _write(path, [x for x in kept if _number(x, "validation") < report.validation])
    _add(path, [{**at, **sample} for sample in report.samples])


def _outlives(line: Line) -> bool:
    """Return whether a line stays when its step is trained again."""
    return line.get("kind") in (NOTE, LOST)


def _last_step(path: Path) -> int:
    """Return the step of a log's newest whole line; the log's end is enough, as a rule."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        tail = file.read().decode(errors="replace")
        for line in _whole(reversed(tail.split("\n"))):
            return _number(line, "step")
    lines = _read(path)
    return _number(lines[-1], "step") if lines else 0


def _read(path: Path) -> list[dict[str, object]]:
    with contextlib.suppress(OSError):
        # Not splitlines(): a generated text may hold any of the other line ends.
        return list(_whole(path.read_text(encoding="utf-8", errors="replace").split("\n")))
    return []


def _whole(texts: Iterable[str]) -> Iterator[dict[str, object]]:
    """Yield what the lines hold that are not torn."""
    for text in texts:
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict):
                yield line


def _add(path: Path, lines: Sequence[Line]) -> None:
    with path.open("a", encoding="utf-8") as file:
        end = file.tell()
        torn = False
        if end:
            with path.open("rb") as written:
                written.seek(end - 1)
                torn = written.read(1) != b"\n"
        file.write("\n" * torn + "".join(json.dumps(line) + "\n" for line in lines))


def _write(path: Path, lines: Sequence[Line]) -> None:
    fresh = path.with_name(f".{path.name}")
    fresh.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    fresh.replace(path)


def _number(line: Line, key: str) -> int:
    value = line.get(key, 0)
    return int(value) if isinstance(value, int | float) else 0
