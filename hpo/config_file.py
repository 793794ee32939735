"""From a YAML file of one config, as `hpo train` takes it, to checked options.

A study's file is ``hpo.spec_file``; what may be wrong with values is ``hpo.spec_checks``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpo.document import read_document
from hpo.errors import SpecError
from hpo.spec import TrackerName, tracker_names
from hpo.spec_checks import (
    DEFAULT_METRIC,
    metric_problem,
    run_name_problems,
    validation_problems,
)
from hpo.spec_file import completed_for, options_of, translated, unique
from hpo.store.address import is_url, local_folder, shown
from search_spaces.problems import Problem
from trainers.protocol import TrainerOptions

BEST_METRIC = "metric_for_best_model"
"""transformers' name for the option that says which metric tells the best checkpoint."""


@dataclass(frozen=True)
class ConfigFile:
    """A checked file of one config.

    Attributes:
        trainer: Name or dotted path.
        config: The trainer's options, without aliases.
        output_dir: Where the adapter and the checkpoints go.
        metric: Decides which validation's adapter is handed over; None: the last step's, where
            nothing is validated.
        sign: 1 if less of it is better, -1 if more.
        report_to: Trackers.
        run_name: In the trackers.
    """

    trainer: str
    config: dict[str, object]
    output_dir: Path
    metric: str | None = "eval_loss"
    sign: float = 1.0
    report_to: tuple[TrackerName, ...] = ()
    run_name: str = "{study}"


def read_config_file(path: Path) -> ConfigFile:
    """Read a file of one config, as `hpo train` takes it: flat options of one trainer.

    Raises:
        SpecError: As ``read_spec_file``.
    """
    document = read_document(path)
    values = dict(document.values)
    if "space" in values:
        raise SpecError(
            f"{path}: has a 'space:' to search; type `hpo run {path}`. `hpo train` takes one config."
        )
    problems: list[Problem] = []
    trainer = values.pop("trainer", "lora")
    given_dir = str(values.pop("output_dir", "runs/train"))
    if is_url(given_dir):
        problems.append(
            Problem(
                ("output_dir",), f"{shown(given_dir)!r} is a URL; `hpo train` writes to a folder."
            )
        )
    output_dir = (path.parent / local_folder(given_dir)).resolve()
    metric = values.pop("metric", None)
    direction = values.pop("direction", None)
    if direction not in (None, "minimize", "maximize"):
        problems.append(
            Problem(("direction",), f"must be minimize or maximize, not {direction!r}.")
        )
    report_to = _trackers(values.pop("report_to", None), problems)
    run_name = str(values.pop("run_name", None) or "{study}")
    options = options_of(trainer, problems)
    if options is None:
        raise document.error(problems)
    values = translated(values, options, path.parent, (), problems)
    if problems:  # what could not be translated is not there to be checked
        raise document.error(unique(problems))
    if metric is not None:
        values = completed_for(options, values, str(metric), maximize=direction == "maximize")
    found = [
        Problem(problem.path[1:], problem.message, problem.at_key)
        for problem in validation_problems(options, values, "", ())
    ]
    problems += [*found, *run_name_problems(run_name, options, values, is_study=False)]
    if problems:
        raise document.error(unique(problems))
    checked = options.model_validate(values)
    default = ("minimize", str(metric)) if metric is not None else None
    default_direction, chosen = default or _default_metric(checked)
    if chosen is not None and (message := metric_problem(chosen, checked)):
        raise document.error([Problem(("metric",), message)])
    sign = -1.0 if (direction or default_direction) == "maximize" else 1.0
    return ConfigFile(
        str(trainer), values, output_dir, chosen, sign, report_to=report_to, run_name=run_name
    )


def _trackers(value: object, problems: list[Problem]) -> tuple[TrackerName, ...]:
    try:
        return tuple(tracker_names(value))
    except ValueError as error:
        problems.append(Problem(("report_to",), str(error)))
        return ()


def _default_metric(options: TrainerOptions) -> tuple[str, str | None]:
    """Return the direction and the metric that a file without `metric:` goes by.

    The trainer's ``metric_for_best_model`` (more of it is better as ``greater_is_better`` says, or
    else as transformers has it: unless it is a loss); else eval_loss; where that is not reported,
    none.
    """
    given: Mapping[str, object] = options.model_dump(include={BEST_METRIC, "greater_is_better"})
    names = options.metric_names()
    metric = given.get(BEST_METRIC)
    if isinstance(metric, str):
        prefixed = f"eval_{metric}"
        if names is not None and metric not in names and prefixed in names:
            metric = prefixed  # transformers adds it, too
        greater = given.get("greater_is_better")
        is_greater = greater if isinstance(greater, bool) else not metric.endswith("loss")
        return ("maximize" if is_greater else "minimize"), metric
    is_reported = names is None or DEFAULT_METRIC in names
    return "minimize", DEFAULT_METRIC if is_reported else None
