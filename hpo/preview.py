"""What a study will do and cost, found out without running it."""

from __future__ import annotations

import statistics
import time
from itertools import islice

import optuna

from hpo.errors import TrainerError
from hpo.lookup import find_trainer
from hpo.samplers import GRID
from hpo.spec import AUTO, StudySpec
from search_spaces import SearchSpace, SpaceError
from trainers.protocol import Trainer

TIMED_STEPS = 2
NUM_PLANNED = 8


def preview(spec: StudySpec, num_trials: int | None, *, load: bool) -> dict[str, object]:
    """Return what is known of a study before it runs, by name.

    Args:
        spec: Checked.
        num_trials: Overrides the budget's.
        load: Load model and data, plan several configs, and time two steps of one.

    Raises:
        TrainerError: Model or data cannot be loaded.
    """
    space = spec.search_space
    found: dict[str, object] = {"study": spec.study, "parameters": ", ".join(space.names)}
    size = _size(space)
    found["configs in the space"] = "without end" if size is None else size
    trials = num_trials or spec.budget.trials
    if spec.sampler.type == GRID:
        found["points of the grid"] = len(space.grid_points())
        trials = trials or len(space.grid_points())
    found["trials"] = trials or "give --trials"
    found["sampler, pruner"] = f"{spec.sampler.type}, {spec.pruner.type}"
    if spec.resources.gpu == AUTO:
        found["trials a device"] = "gpu: auto: measured when the run begins"
    if not load:
        return found
    try:
        trainer = find_trainer(spec.trainer)(spec.fixed, "auto")
        configs = [{**spec.fixed, **values} for values in islice(_draws(space), NUM_PLANNED)]
        plans = [trainer.plan(config) for config in configs]
        seconds = _seconds_per_step(trainer, configs[0])
    except ValueError as error:
        raise TrainerError(str(error)) from error
    found["training samples"] = plans[0].num_train_samples
    found["validation samples"] = plans[0].num_eval_samples
    found["steps a trial"] = _range([plan.num_steps for plan in plans])
    found["validations a trial"] = _range([plan.num_validations for plan in plans])
    found["trained weights a trial"] = _range([plan.num_trainable_parameters for plan in plans])
    found["seconds a step"] = f"{seconds:.2f} (measured with one config on this machine)"
    if trials:
        steps = statistics.mean(plan.num_steps for plan in plans)
        hours = trials * steps * seconds / 3600
        found["at most"] = f"{hours:.2g} hours of training on one such device, without pruning"
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        found.setdefault("note", note)
    return found


def _size(space: SearchSpace) -> int | None:
    try:
        return space.num_points()
    except SpaceError:
        return None


def _draws(space: SearchSpace):  # type: ignore[no-untyped-def]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    while True:
        yield space.suggest(study.ask())


def _seconds_per_step(trainer: Trainer, config: dict[str, object]) -> float:
    trainer.add(0, config)
    trainer.advance()  # the first one warms up
    started = time.monotonic()
    for _ in range(TIMED_STEPS):
        trainer.advance()
    trainer.remove(0)
    return (time.monotonic() - started) / TIMED_STEPS


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
