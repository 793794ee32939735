"""Trains one config without a search, through the same trainer and the same checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from hpo import trial_log
from hpo.checkpoints import Checkpoint, CheckpointStore
from hpo.errors import StudyError, TrainerError
from hpo.lookup import find_trainer
from hpo.proposals import config_digest
from hpo.result import config_yaml, versions
from trainers.protocol import ADAPTER_FOLDER, Report

NUMBER = 0
METRIC = "eval_loss"


def train_config(
    trainer_name: str,
    config: Mapping[str, object],
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, object]:
    """Train one config to its end, from its newest checkpoint if there is one.

    Args:
        trainer_name: As in a study's file.
        config: The trainer's options.
        folder: Gets ``adapter/`` (of the best validation), ``config.yaml`` and ``checkpoints/``.
        say: Told of each validation.

    Returns:
        Step and metrics of the best validation, and where the adapter lies.

    Raises:
        TrainerError: The model or the data is wrong, or training failed.
        StudyError: The folder holds checkpoints of another config.
    """
    store = CheckpointStore(folder / f"checkpoints-{config_digest(config)[:8]}")
    others = [path for path in folder.glob("checkpoints-*") if path != store.root]
    if others:
        raise StudyError(
            f"{folder} holds the checkpoints of another config ({others[0].name}). Give another "
            f"--output-dir, or delete them."
        )
    try:
        trainer = find_trainer(trainer_name)(config, "auto")
        found = store.newest(NUMBER)
        history = list(found.history) if found else []
        if found:
            say(f"going on from step {found.step}")
        if not (history and history[-1].end):
            trainer.add(NUMBER, config, found.folder if found else None)
    except ValueError as error:
        raise TrainerError(str(error)) from error
    while not (history and history[-1].end):
        for report in trainer.advance():
            trial_log.append(store.trial_folder(NUMBER), report, report.end or "goes on")
            if report.end in ("failed", "diverged"):
                raise TrainerError(f"training {report.end} at step {report.step}: {report.message}")
            history.append(replace(report, step_lines=(), samples=()))
            store.write(
                NUMBER,
                report.step,
                history,
                True,
                lambda target: trainer.save(NUMBER, target),
            )
            _thin_out(store, history)
            say(_spoken(report))
    return _hand_over(store, history, trainer_name, config, folder)


def _best(history: list[Report]) -> Report:
    return min(history, key=lambda report: report.metrics.get(METRIC, float("inf")))


def _thin_out(store: CheckpointStore, history: list[Report]) -> None:
    steps = store.steps(NUMBER)
    store.delete(NUMBER, keep={*steps[-2:], _best(history).step})


def _hand_over(
    store: CheckpointStore,
    history: list[Report],
    trainer_name: str,
    config: Mapping[str, object],
    folder: Path,
) -> dict[str, object]:
    best = _best(history)
    checkpoint: Checkpoint = store.at_step(NUMBER, best.step)
    adapter = folder / ADAPTER_FOLDER
    shutil.rmtree(adapter, ignore_errors=True)
    shutil.copytree(checkpoint.adapter, adapter)
    heading = f"Trained with {versions()}"
    text = config_yaml({"trainer": trainer_name, "output_dir": ".", **config}, heading)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return {"step": best.step, "metrics": dict(best.metrics), "adapter": str(adapter)}


def _spoken(report: Report) -> str:
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in report.metrics.items())
    return f"step {report.step}: {metrics}"
