"""Pictures of runs, as PNG: one a trial, and two of the study. Made from the logs and the database.

What is drawn is read in ``curves``; how it looks is in ``trial`` and ``study``. Needs no display.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hpo.checkpoints import CheckpointStore
from hpo.plots.curves import read_curves
from hpo.plots.study import draw_parameters, draw_validations
from hpo.plots.style import save
from hpo.plots.trial import draw_trial
from hpo.studies import StudyRecord, best_of

SMOOTHING = 0.6
"""TensorBoard's default."""


def plot_study(
    record: StudyRecord, folder: Path, smoothing: float, only: int | None = None
) -> Iterator[Path]:
    """Draw a study and its trials, or one of them, and yield each picture's path.

    Args:
        record: The study.
        folder: Where the pictures go.
        smoothing: Weight of the past in the smoothed loss, from 0 to below 1.
        only: Number of the one trial to draw.
    """
    trials, spec = record.trials(), record.spec
    best = best_of(trials, spec)
    store = CheckpointStore.of_study(spec.output_dir, spec.study)
    if only is None:
        yield save(draw_validations(trials, best, spec), folder / "validations.png")
        yield save(draw_parameters(trials, best, spec), folder / "parameters.png")
    for trial in trials if only is None else [trials[only]]:
        curves = read_curves(store.log_folder(trial.number))
        if curves.is_empty and only is None:
            continue
        state = trial.state.lower() if trial.reason is None else trial.reason.replace("_", " ")
        mark = ", best" if best is not None and best.number == trial.number else ""
        title = f"{spec.study}: trial {trial.number} ({state}{mark})"
        figure = draw_trial(curves, title, spec.metric, smoothing)
        yield save(figure, folder / f"trial-{trial.number}.png")


def plot_log(log_folder: Path, folder: Path, title: str, smoothing: float) -> Path:
    """Draw one training's log, as `hpo train` leaves it; return the picture's path."""
    figure = draw_trial(read_curves(log_folder), title, "eval_loss", smoothing)
    return save(figure, folder / "training.png")
