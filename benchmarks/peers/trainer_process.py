"""One process of ``trainer_search``: one Trainer, which makes its model anew for each trial."""

from __future__ import annotations

import math
from pathlib import Path

import optuna
import torch
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from peft import PeftModel
from transformers import PrinterCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from events import Events
from examples import Data
from optuna_process import choose, make_study, shared_storage
from progress import Progress
from token_mean_trainer import TokenMeanTrainer
from trial import add_adapter, load_base, training_arguments
from workload import Arguments, Config, Workload, parse_arguments


class Course(Progress):
    """The progress of one trial after the other, of one Trainer."""

    def start(self, number: int) -> None:
        """Begin with another trial."""
        self.number, self.best = number, math.inf

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """The Trainer calls this for a pruned trial too."""
        Events(self.out).end(self.number, state.global_step)


class Search:
    """What ``hyperparameter_search`` asks for at each trial, in its order: a model, then the space."""

    def __init__(self, workload: Workload, out: Path) -> None:
        """Take the workload and the folder of the search."""
        self._workload = workload
        self._out = out
        self.progress = Course(workload, out, number=-1)
        # The Trainer asks for a model when it is made too, before there is a trial.
        self._config = Config(workload.space.low, workload.space.lora_r[0], 1)

    def model(self, trial: optuna.Trial | None = None) -> PeftModel:
        """Choose the trial's config, load the model and put the adapter into it."""
        if trial is not None:
            self._config = choose(trial, self._workload)
            self.progress.start(trial.number)
            Events(self._out).begin(trial.number, self._config)
            set_seed(trial.number)  # the Trainer has set the seed of the trial before
        return add_adapter(load_base(self._workload), self._config)

    def space(self, trial: optuna.Trial) -> dict[str, float | int]:
        """Return what of the config is for the Trainer, which sets its arguments to it."""
        return {
            "learning_rate": self._config.learning_rate,
            "per_device_train_batch_size": self._config.batch_size,
            "seed": trial.number,
        }

    def first_arguments(self) -> TrainingArguments:
        """Return the arguments of which each trial changes some."""
        return training_arguments(self._workload, self._config, self._workload.seed, self._out)


def num_trials(workload: Workload, worker: int) -> int:
    """Return a process's share of the trials: the search takes a number, and no callback."""
    return len(range(worker, workload.num_trials, workload.concurrency))


def pruner(workload: Workload) -> BasePruner:
    """Return ASHA with the first validation as its first rung; the Trainer reports steps."""
    if workload.script is not None:
        return NopPruner()
    return SuccessiveHalvingPruner(
        min_resource=workload.eval_steps, reduction_factor=workload.reduction_factor
    )


def work(arguments: Arguments) -> None:
    """Do this process's share of the trials."""
    workload, out, worker = arguments.workload, arguments.out, arguments.worker or 0
    torch.set_num_threads(workload.threads)
    data, search = Data(workload), Search(workload, out)
    trainer = TokenMeanTrainer(
        model=None,
        model_init=search.model,
        args=search.first_arguments(),
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=data.collate,
        callbacks=[search.progress],
    )
    trainer.remove_callback(PrinterCallback)
    make_study(arguments)  # with the configs to begin with; the search loads it
    try:
        trainer.hyperparameter_search(
            hp_space=search.space,
            compute_objective=lambda metrics: metrics["eval_loss"],
            n_trials=num_trials(workload, worker),
            direction="minimize",
            backend="optuna",
            sampler=TPESampler(seed=workload.seed + worker),
            pruner=pruner(workload),
            storage=shared_storage(arguments),
            study_name="search",
            load_if_exists=True,
        )
    except ValueError as error:
        # Where all of this process's trials were pruned, and none of the others' is complete yet,
        # the search finds no best one at its end.
        if "No trials are completed yet" not in str(error):
            raise


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work(parse_arguments(__doc__))
