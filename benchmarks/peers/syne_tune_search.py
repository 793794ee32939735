"""Syne Tune: the local backend, ASHA with a TPE-like searcher (its BOHB), a process for each trial.

What a trial does is ``syne_tune_trial``, which Syne Tune starts and stops.
"""

from __future__ import annotations

import os
from pathlib import Path

from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend import LocalBackend
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice, loguniform
from syne_tune.optimizer.baselines import BOHB, RandomSearch
from syne_tune.optimizer.scheduler import SchedulerDecision, TrialScheduler
from syne_tune.results_callback import StoreResultsCallback
from syne_tune.tuner_callback import TunerCallback

from events import Events
from workload import Arguments, parse_arguments

ENTRY_POINT = Path(__file__).resolve().parent / "syne_tune_trial.py"
METRIC = "eval_loss"
RESOURCE = "validation"
POLL_S = 0.1
"""How often Syne Tune looks for reports. Its default of 5 seconds is for trials of minutes."""


class Ends(TunerCallback):
    """Says when Syne Tune is done with a trial."""

    def __init__(self, out: Path, eval_steps: int) -> None:
        """Take the folder of the search."""
        self._out = out
        self._eval_steps = eval_steps

    def on_trial_result(
        self, trial: Trial, status: str, result: dict[str, object], decision: str
    ) -> None:
        """A trial has reported, and goes on or is stopped."""
        if decision == SchedulerDecision.STOP:
            self._end(trial, result)

    def on_trial_complete(self, trial: Trial, result: dict[str, object]) -> None:
        """A trial has ended by itself."""
        self._end(trial, result)

    def _end(self, trial: Trial, result: dict[str, object]) -> None:
        Events(self._out).end(trial.trial_id, int(str(result[RESOURCE])) * self._eval_steps)


def make_scheduler(arguments: Arguments) -> TrialScheduler:
    """Return ASHA, or for a script one trial after the other; both number trials from 0."""
    workload = arguments.workload
    fixed = {"workload": str(arguments.given), "out": str(arguments.out)}
    if workload.script is not None:
        numbers = list(range(workload.num_trials))
        return RandomSearch(
            {**fixed, "entry": choice(numbers)},
            metrics=[METRIC],
            points_to_evaluate=[{"entry": number} for number in numbers],
        )
    space = workload.space
    return BOHB(
        {
            **fixed,
            "learning_rate": loguniform(space.low, space.high),
            "lora_r": choice(list(space.lora_r)),
            "batch_size": choice(list(space.batch_size)),
        },
        metric=METRIC,
        time_attr=RESOURCE,
        max_t=workload.max_validations,
        grace_period=1,
        reduction_factor=workload.reduction_factor,
        random_seed=workload.seed,
        points_to_evaluate=[{**fixed, **config.as_dict()} for config in workload.initial] or None,
    )


def main() -> None:
    """Search, or follow the script."""
    arguments = parse_arguments(__doc__)
    workload, out = arguments.workload, arguments.out
    Events(out).search_begin()
    # Trials inherit these. The model is a folder.
    os.environ.update(OMP_NUM_THREADS=str(workload.threads), HF_HUB_OFFLINE="1")
    tuner = Tuner(
        trial_backend=LocalBackend(str(ENTRY_POINT), rotate_gpus=False),
        scheduler=make_scheduler(arguments),
        stop_criterion=StoppingCriterion(max_num_trials_started=workload.num_trials - 1),
        n_workers=workload.concurrency,
        sleep_time=POLL_S,
        max_failures=0,
        wait_trial_completion_when_stopping=True,
        save_tuner=False,
        trial_backend_path=str(out / "syne_tune"),
        callbacks=[StoreResultsCallback(), Ends(out, workload.eval_steps)],
    )
    tuner.run()
    Events(out).search_end()


if __name__ == "__main__":
    main()
