"""`hpo plot`: pictures of a study, of its trials, or of one training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpo import trial_log
from hpo.checkpoints import CheckpointStore
from hpo.cli.console import stdout
from hpo.cli.target import StorageOption, find_target
from hpo.errors import SpecError, StudyError

FOLDER = "plots"


def plot(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|FOLDER",
            help="A study's name, its YAML file, or the output folder of `hpo train`.",
        ),
    ],
    trial: Annotated[int | None, typer.Option(min=0, help="This trial alone.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The pictures' folder; default: 'plots' in the study's, or here at a URL.",
        ),
    ] = None,
    smoothing: Annotated[
        float,
        typer.Option(help="Weight of the past in the smoothed loss: 0 (none) to below 1."),
    ] = 0.6,
    storage: StorageOption = None,
) -> None:
    """Draw loss curves, learning rate and gradient norm of each trial, and the study's trials.

    Writes PNG files, which need no display, and prints their paths.
    """
    if not 0 <= smoothing < 1:
        raise SpecError(f"--smoothing must be from 0 to below 1, not {smoothing:g}.")
    from hpo.plots import plot_log, plot_study

    logs = _logs_of_training(Path(study))
    if logs:
        if trial is not None:
            raise SpecError(f"{study} is one training, without trials: leave out --trial.")
        folder = out or Path(study) / FOLDER
        title = f"{Path(study).resolve().name}: training"
        _tell(plot_log(logs[-1], folder, title, smoothing))
        return
    record = find_target(study, storage).open()
    num_trials = record.num_trials()
    if trial is not None and trial >= num_trials:
        raise StudyError(f"the study {record.name!r} has no trial {trial}; it has {num_trials}.")
    store = CheckpointStore.of_study(record.spec.output_dir, record.name)
    folder = out or (store.work / FOLDER if store.is_local else Path(FOLDER) / record.name)
    for path in plot_study(record, folder, smoothing, trial):
        _tell(path)


def _tell(path: Path) -> None:
    stdout.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _logs_of_training(folder: Path) -> list[Path]:
    """Return the folders of logs that `hpo train` left in its output folder, newest last."""
    if not folder.is_dir():
        return []
    found = [
        *folder.glob(f"checkpoints-*/0/{trial_log.LOG_FILE}"),
        *folder.glob(trial_log.LOG_FILE),
    ]
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime)]
