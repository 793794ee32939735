"""Follows trials' logs and passes on what a tracker has not got yet.

What was passed on is noted in ``<study>/trackers/<tracker>/<number>.json``, so that a resumed study goes
on with the same runs, repeats no step, and catches up on what an earlier driver could not deliver.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hpo import trial_log
from hpo.trackers.tracker import Ending, OpenRun, Point, Run, Tracker


@dataclass(frozen=True)
class _Delivered:
    name: str
    step: int | None = None
    ended: bool = False


class Follower:
    """Brings one tracker up to date with the trials that it is told of."""

    def __init__(self, tracker: Tracker, notes: Path) -> None:
        """Follow for a tracker; ``notes`` is its own folder in the study's."""
        self._tracker = tracker
        self._notes = notes
        self._open: dict[int, OpenRun] = {}
        self._delivered: dict[int, _Delivered] = {}
        self.address = ""

    def follow(self, run: Run, ending: Ending | None) -> None:
        """Pass on a trial's news; what fails is tried again with the next news of the trial."""
        delivered = self._delivered.get(run.number) or self._read(run)
        if delivered.ended:
            return
        try:
            self._deliver(run, ending, delivered)
        except Exception:
            broken = self._open.pop(run.number, None)  # the next news open it again
            if broken is not None:
                with contextlib.suppress(Exception):
                    broken.leave()
            raise

    def _deliver(self, run: Run, ending: Ending | None, delivered: _Delivered) -> None:
        points = points_of(trial_log.read(run.log_folder), delivered.step)
        tracked = self._open.get(run.number)
        if tracked is None:
            tracked = self._tracker.open(replace(run, name=delivered.name), delivered.step)
            self._open[run.number] = tracked
            self.address = self.address or tracked.address
        if points:
            tracked.log(points)
            delivered = replace(delivered, step=points[-1].step)
            self._write(run, delivered)
        if ending is not None:
            best = {} if ending.best is None else {f"best/{run.metric}": ending.best}
            tracked.end(ending, best)
            del self._open[run.number]
            delivered = replace(delivered, ended=True)
        self._write(run, delivered)

    def leave(self) -> None:
        """Close the runs of trials that have not ended."""
        while self._open:
            _, tracked = self._open.popitem()
            tracked.leave()

    def _read(self, run: Run) -> _Delivered:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return _Delivered(**json.loads(self._note(run).read_text(encoding="utf-8")))
        return _Delivered(run.name)

    def _write(self, run: Run, delivered: _Delivered) -> None:
        if self._delivered.get(run.number) == delivered:
            return
        self._delivered[run.number] = delivered
        self._notes.mkdir(parents=True, exist_ok=True)
        unfinished = self._note(run).with_suffix(".tmp")
        unfinished.write_text(json.dumps(asdict(delivered)), encoding="utf-8")
        os.replace(unfinished, self._note(run))

    def _note(self, run: Run) -> Path:
        return self._notes / f"{run.number}.json"


def points_of(lines: Iterable[Mapping[str, object]], after: int | None) -> list[Point]:
    """Return what a log says of the steps after ``after``, one point a step, steps rising.

    Names are those that transformers gives its trackers: ``eval/loss`` for ``eval_loss``,
    ``train/loss`` for a step's ``loss``. What is no number stays in the log.
    """
    steps: dict[int, dict[str, float]] = {}
    for line in lines:
        kind, step = line.get("kind"), line.get("step")
        if kind not in ("step", "validation") or not isinstance(step, int):
            continue
        if after is not None and step <= after:
            continue
        values = steps.setdefault(step, {})
        for name, value in line.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and name != "step":
                values[_shown(name, str(kind))] = float(str(value))
    return [Point(step, values) for step, values in sorted(steps.items())]


def _shown(name: str, kind: str) -> str:
    if name == "epoch":
        return "train/epoch"
    if name.startswith("eval_") or kind == "validation":
        return f"eval/{name.removeprefix('eval_')}"
    return f"train/{name}"


def chunks(values: Iterable[Point], size: int) -> Iterable[tuple[Point, ...]]:
    """Yield points in groups of at most ``size``."""
    remaining = iter(values)
    while chunk := tuple(itertools.islice(remaining, size)):
        yield chunk
