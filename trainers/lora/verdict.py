"""What follows for a trial from a validation: its learning rate, best weights, and whether it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from trainers.lora.trial import Trial


def judge(trial: Trial, metrics: Mapping[str, float], stop: str | None = None) -> None:
    """Compare a validation with the trial's best, and end the trial if that follows.

    Args:
        trial: With the weights that were validated.
        metrics: Of the validation.
        stop: Why a callback has the trial stop, if it does.

    Raises:
        ValueError: The metrics lack the one that trials are judged by.
    """
    if trial.options.validates:
        value = _judged_value(trial, metrics)
        trial.learning_rate.observe(value)
        _keep_best(trial, value)
        _count_gain(trial, value)
        stop = _reason_to_stop(trial, value) or stop
    if trial.is_out_of_time:
        minutes = trial.options.max_train_minutes
        stop = stop or f"its steps and validations have taken max_train_minutes: {minutes:g}"
    if trial.is_last_step_done:
        trial.end("finished")
    elif stop is not None:
        trial.end("stopped_early", stop)


def restore_best(trial: Trial) -> None:
    """Give a trial that has ended well the weights of its best validation, if it asks for them."""
    if trial.best_weights is None or trial.progress.end not in ("finished", "stopped_early"):
        return
    with torch.no_grad():
        for name, parameter in trial.parameters.items():
            parameter.copy_(trial.best_weights[name])
    trial.results.clear()


def _judged_value(trial: Trial, metrics: Mapping[str, float]) -> float:
    name = trial.options.best_metric
    if name not in metrics:
        raise ValueError(
            f"metric_for_best_model: {name!r} is not among the metrics of the validation. Reported: "
            f"{', '.join(sorted(metrics))}."
        )
    return metrics[name]


def _keep_best(trial: Trial, value: float) -> None:
    progress = trial.progress
    if not _is_better(trial, value, progress.best_metric, 0.0):
        return
    progress.best_metric = value
    if trial.options.load_best_model_at_end:
        trial.best_weights = {
            name: parameter.detach().clone() for name, parameter in trial.parameters.items()
        }


def _count_gain(trial: Trial, value: float) -> None:
    progress = trial.progress
    if _is_better(trial, value, progress.best_counted, trial.options.early_stopping_threshold):
        progress.best_counted = value
        progress.num_validations_without_gain = 0
    else:
        progress.num_validations_without_gain += 1


def _reason_to_stop(trial: Trial, value: float) -> str | None:
    options, num_without_gain = trial.options, trial.progress.num_validations_without_gain
    name, target = options.best_metric, options.eval_target
    if target is not None and (value == target or _is_better(trial, value, target, 0.0)):
        return f"{name} {value:.6g} has reached eval_target: {target:g}"
    patience = options.early_stopping_patience
    if patience is not None and num_without_gain >= patience:
        return f"no better {name} in {num_without_gain} validations"
    return None


def _is_better(trial: Trial, value: float, best: float | None, threshold: float) -> bool:
    if math.isnan(value):
        return False
    options = trial.options
    return best is None or options.is_better(value, best, options.best_metric, threshold)
