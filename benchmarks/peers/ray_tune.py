"""Ray Tune: OptunaSearch with TPE, ASHAScheduler, a function trainable with Trainer and PEFT.

With ``--reuse-actors`` an actor keeps the model and the data for its next trial, as a function
trainable may with Tune's ``reuse_actors``; without, each trial is a new process.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # no CSV, no TensorBoard
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is a folder

import optuna
import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.optuna import OptunaSearch

from events import Events
from workload import Config, Space, Workload, parse_arguments

Given = dict[str, float | int]

METRIC = "eval_loss"
REUSE = "reuse-actors"


class Ends(tune.Callback):
    """Says when Tune is done with a trial, which it may have stopped from outside."""

    def __init__(self, out: Path, eval_steps: int) -> None:
        """Take the folder of the search."""
        self._out = out
        self._eval_steps = eval_steps

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        config, last = trial.config, trial.last_result
        step = int(last.get("training_iteration", 0)) * self._eval_steps
        Events(self._out).end(config["number"], step)


def train(given: Given, workload: Workload, out: Path) -> None:
    """Train one trial in a process of Tune's. All that is heavy is imported there only."""
    number = int(given["number"])
    config = Config.of(given) if workload.script is None else workload.script[number].config
    Events(out).begin(number, config)
    import torch

    from trial import resident, train_trial

    torch.set_num_threads(workload.threads)

    def report(index: int, loss: float) -> bool:
        tune.report({METRIC: loss})  # does not return where ASHA stops the trial
        return False

    base, data = resident(workload)
    train_trial(base, workload, data, out, number, config, report)


def define(space: Space, trial: optuna.Trial) -> dict[str, int]:
    """Ask Optuna for a config; Tune adds what is returned, so that a trial knows its number."""
    trial.suggest_float("learning_rate", space.low, space.high, log=True)
    trial.suggest_categorical("lora_r", space.lora_r)
    trial.suggest_categorical("batch_size", space.batch_size)
    return {"number": trial.number}


def tune_config(workload: Workload, reuse_actors: bool) -> tune.TuneConfig:
    """Return TPE and ASHA, or for a script neither."""
    make = partial(
        tune.TuneConfig,
        max_concurrent_trials=workload.concurrency,
        reuse_actors=reuse_actors,
    )
    if workload.script is not None:
        return make(metric=METRIC, mode="min", scheduler=FIFOScheduler())
    asha = ASHAScheduler(
        time_attr="training_iteration",
        metric=METRIC,
        mode="min",
        max_t=workload.max_validations,
        grace_period=1,
        reduction_factor=workload.reduction_factor,
    )
    tpe = OptunaSearch(
        partial(define, workload.space),
        metric=METRIC,
        mode="min",
        points_to_evaluate=[config.as_dict() for config in workload.initial],
        seed=workload.seed,
    )
    return make(search_alg=tpe, scheduler=asha, num_samples=workload.num_trials)


def main() -> None:
    """Search, or follow the script."""
    arguments = parse_arguments(__doc__, {REUSE: "keep processes and the model between trials"})
    workload, out = arguments.workload, arguments.out
    num_cores = len(os.sched_getaffinity(0))
    Events(out).search_begin()
    ray.init(
        address="local",  # a cluster of its own, whatever else runs here
        num_cpus=num_cores,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(train, workload=workload, out=out),
            {"cpu": num_cores / workload.concurrency},
        ),
        param_space={"number": tune.grid_search(list(range(len(workload.script))))}
        if workload.script is not None
        else {},
        tune_config=tune_config(workload, REUSE in arguments.flags),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(out),
            verbose=0,
            callbacks=[JsonLoggerCallback(), Ends(out, workload.eval_steps)],
        ),
    )
    results = tuner.fit()
    if results.num_errors:
        raise SystemExit(f"{results.num_errors} trials failed: {results.errors[0]}")
    best = results.get_best_result(METRIC, "min", scope="all")
    print(f"best: {best.metrics[METRIC] if best.metrics else None}")
    Events(out).search_end()
    ray.shutdown()


if __name__ == "__main__":
    main()
