"""Weights & Biases: one run a trial, grouped by study.

Its own variables hold: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE, WANDB_DIR, ...
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.trackers.tracker import Ending, Point, Run, flat

PROJECT = "hpo"


class WeightsAndBiases:
    """Writes below ``wandb/`` in the study's folder; several runs are open at once."""

    def __init__(self, folder: Path, study: str) -> None:
        os.environ.setdefault("WANDB_DIR", str(folder))
        for name in ("CACHE", "CONFIG", "DATA"):
            os.environ.setdefault(f"WANDB_{name}_DIR", str(folder / "wandb" / name.lower()))
        Path(os.environ["WANDB_DIR"]).mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb

    def open(self, run: Run, last_step: int | None) -> WandbRun:
        opened = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=run.study,
            id=run.key,
            name=run.name,
            config=flat(run.config),
            resume="allow",
            reinit="create_new",
            settings=self._wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                x_disable_stats=True,  # of the driver's machine, which is not the trial's
            ),
        )
        return WandbRun(opened)


class WandbRun:
    """One run; W&B itself passes over steps that it has."""

    def __init__(self, opened: Any) -> None:
        self._run = opened
        self.address = "" if opened.settings._offline else str(opened.url or "")

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log(dict(point.values), step=point.step)

    def end(self, ending: Ending, best: Mapping[str, float]) -> None:
        self._run.summary.update(
            {**best, "state": ending.state, "reason": ending.reason, "message": ending.message}
        )
        self._run.finish(exit_code=0 if ending.is_good else 1)

    def leave(self) -> None:
        self._run.finish(exit_code=0)
