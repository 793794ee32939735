"""Trackio: one project a study, one run a trial.

In a SQLite file in ``trackio/`` of the study's folder; Trackio's own variables (TRACKIO_DIR,
TRACKIO_SPACE_ID, ...) hold.
"""

from __future__ import annotations

import contextvars
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.trackers.tracker import Ending, Point, Run, flat


class Trackio:
    """Each run is opened in a context of its own: Trackio ends the run that it finds in its context."""

    def __init__(self, folder: Path, study: str) -> None:
        directory = Path(os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").resolve())))
        directory.mkdir(parents=True, exist_ok=True)
        import trackio

        self._trackio = trackio
        self._directory = directory

    def open(self, run: Run, last_step: int | None) -> TrackioRun:
        opened = contextvars.Context().run(
            self._trackio.init,
            project=run.study,
            name=run.name,
            group=run.study,
            config=flat(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return TrackioRun(opened, f"TRACKIO_DIR={self._directory} trackio show")


class TrackioRun:
    """One run. What a run ended with is its last point."""

    def __init__(self, opened: Any, address: str) -> None:
        self._run = opened
        self._last_step = 0
        self.address = address

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log(dict(point.values), step=point.step)
            self._last_step = point.step

    def end(self, ending: Ending, best: Mapping[str, float]) -> None:
        said = {"state": ending.state, "reason": ending.reason, "message": ending.message}
        given = {name: value for name, value in said.items() if value}
        self._run.log({**best, **given}, step=self._last_step)
        self._run.finish()

    def leave(self) -> None:
        self._run.finish()
