"""One process of ``optuna_alone``: one model, into which each trial's adapter is put and taken out."""

from __future__ import annotations

import time

import optuna
import torch
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import MaxTrialsCallback

from events import Events
from trial import resident, train_trial
from workload import Arguments, Config, Workload, parse_arguments

JOURNAL = "optuna.journal"
WAIT_S = 0.05


def choose(trial: optuna.Trial, workload: Workload) -> Config:
    """Ask Optuna for a config, or the script."""
    if workload.script is not None:
        return workload.script[trial.number].config
    space = workload.space
    return Config(
        learning_rate=trial.suggest_float("learning_rate", space.low, space.high, log=True),
        lora_r=trial.suggest_categorical("lora_r", space.lora_r),
        batch_size=trial.suggest_categorical("batch_size", space.batch_size),
    )


def shared_storage(arguments: Arguments) -> JournalStorage:
    """Return the journal that the processes of a search share."""
    return JournalStorage(JournalFileBackend(str(arguments.out / JOURNAL)))


def make_study(arguments: Arguments) -> optuna.Study:
    """Return the study, which begins with the given configs.

    Processes that share it draw from different streams.
    """
    workload = arguments.workload
    study = optuna.create_study(
        storage=shared_storage(arguments),
        study_name="search",
        load_if_exists=True,
        direction="minimize",
        sampler=TPESampler(seed=workload.seed + (arguments.worker or 0)),
        pruner=SuccessiveHalvingPruner(min_resource=1, reduction_factor=workload.reduction_factor),
    )
    if arguments.worker in (None, 0):
        for config in workload.initial:
            study.enqueue_trial(config.as_dict())
    while workload.initial and not study.get_trials(deepcopy=False):
        time.sleep(WAIT_S)  # for the first process
    return study


def work(arguments: Arguments) -> None:
    """Take trials until the study has enough of them."""
    workload, out = arguments.workload, arguments.out
    torch.set_num_threads(workload.threads)
    base, data = resident(workload)
    events = Events(out)

    def objective(trial: optuna.Trial) -> float:
        if trial.number >= workload.num_trials:  # two processes asked at the same moment
            raise optuna.TrialPruned
        config = choose(trial, workload)
        events.begin(trial.number, config)
        last, pruned = 0, False

        def report(index: int, loss: float) -> bool:
            nonlocal last, pruned
            last = index
            trial.report(loss, index)
            pruned = workload.script is None and trial.should_prune()
            return pruned

        best = train_trial(base, workload, data, out, trial.number, config, report)
        events.end(trial.number, last * workload.eval_steps)
        if pruned:
            raise optuna.TrialPruned
        return best

    enough = MaxTrialsCallback(workload.num_trials, states=None)  # running ones count too
    make_study(arguments).optimize(objective, callbacks=[enough])


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work(parse_arguments(__doc__))
