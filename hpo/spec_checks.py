"""What is wrong with a study's values: its trainer's options, its sampler, its pruner.

Options are checked at every end of the space, so that no trial fails over what the file could have
told. Reading and merging files is ``hpo.spec_file``.
"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import optuna
from pydantic import BaseModel, ValidationError

from hpo.errors import SpecError
from hpo.lookup import option_defaults
from hpo.samplers import GRID, build_sampler
from hpo.spec import AUTO, BudgetSpec, PrunerSpec, ResourcesSpec, SamplerSpec
from hpo.verdicts import Never, build_judge
from search_spaces import SearchSpace, SpaceError
from search_spaces.problems import Problem, did_you_mean
from trainers.protocol import TrainerOptions

DEFAULT_METRIC = "eval_loss"

NUM_DRAWS = 16
"""Random configs that the trainer's options are checked with, beside each range's two ends."""

_Model = TypeVar("_Model", bound=BaseModel)


def option_problems(
    options: type[TrainerOptions], space: SearchSpace, fixed: Mapping[str, object]
) -> Iterable[Problem]:
    """Yield what the trainer refuses, in the fixed part and at every end of the space."""
    for name in (*space.names, *space.tied):
        if name in options.shared:
            yield Problem(
                ("space", name),
                "must be the same for all trials, because they share one base model and its data. "
                "Move it to 'fixed:', and make a study of its own for every other value.",
                at_key=True,
            )
    for config in configs(space):
        yield from validation_problems(options, {**fixed, **config}, "fixed", config)


def fixed_problems(options: type[TrainerOptions], fixed: Mapping[str, object]) -> Iterable[Problem]:
    """Yield what is wrong with the fixed part by itself, where the space cannot be drawn from."""
    for problem in validation_problems(options, fixed, "fixed", ()):
        if len(problem.path) > 1 and problem.path[1] in fixed:
            yield problem


def validation_problems(
    options: type[TrainerOptions],
    config: Mapping[str, object],
    section: str,
    searched: Iterable[str],
) -> Iterable[Problem]:
    try:
        options.model_validate(config)
    except ValidationError as error:
        for item in error.errors():
            name = str(item["loc"][0]) if item["loc"] else ""
            inside = "space" if section == "fixed" and name in set(searched) else section
            if inside == "space" and item["type"] == "extra_forbidden":
                continue  # the space's own parser has said so
            yield problem_of(item, (inside,), options)


def metric_problems(
    values: Mapping[str, object],
    options: type[TrainerOptions],
    space: SearchSpace,
    fixed: Mapping[str, object],
) -> Iterable[Problem]:
    """Yield why a trial lacks the study's metric, cannot be pruned, or cannot share its device."""
    metric = str(values.get("metric", DEFAULT_METRIC))
    pruner = _part(PrunerSpec, values.get("pruner", {}))
    resources = _part(ResourcesSpec, values.get("resources", {}))
    for config in configs(space):
        try:
            checked = options.model_validate({**fixed, **config})
        except ValidationError:  # said elsewhere
            continue
        if message := metric_problem(metric, checked):
            yield Problem(("metric",), message)
        reason = checked.pruning_problem()
        if reason is not None and pruner is not None and pruner.type != "none":
            yield Problem(("pruner",), f"{pruner.type} cannot prune these trials: {reason}")
        reason = checked.sharing_problem()
        gpu = AUTO if resources is None else resources.gpu
        if reason is not None and not isinstance(gpu, str) and gpu < 1:  # auto: alone, then
            yield Problem(
                ("resources",),
                f"gpu: {gpu:g} puts several trials on one base model, and {reason}: set "
                f"'resources: {{gpu: 1}}'.",
            )


def metric_problem(metric: str, options: TrainerOptions) -> str | None:
    """Return why trials with these options do not report a metric, and what to change."""
    names = options.metric_names()
    if names is None or metric in names:
        return None
    adding = _adding(metric, options)
    advice = f" Add it by '{adding}', or name" if adding else " Name"
    return (
        f"{metric!r} is not reported with these options.{did_you_mean(metric, names)} Reported: "
        f"{', '.join(sorted(names))}.{advice} one of these as 'metric:'."
    )


def _adding(metric: str, options: TrainerOptions) -> str | None:
    """Find a list of metrics among the options which, with one more entry, reports the metric."""
    given = options.model_dump(exclude_unset=True)
    for name, field in type(options).model_fields.items():
        if not name.endswith("metrics"):
            continue
        words = re.findall(r"\w+", field.description or "")
        for entry in dict.fromkeys((metric, metric.removeprefix("eval_"), *words)):
            try:
                changed = options.model_validate({**given, name: [*(given.get(name) or ()), entry]})
            except ValidationError:
                continue
            if metric in (changed.metric_names() or ()):
                return f"{name}: [{entry}]"
    return None


def run_name_problems(
    template: str, options: type[TrainerOptions], config: Mapping[str, object], *, is_study: bool
) -> Iterable[Problem]:
    """Yield what is wrong with the format of the runs' names, tried on one config."""
    known = {"study", "number", *options.model_fields}
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        for name in sorted(fields - known):
            yield Problem(
                ("run_name",),
                f"unknown field {{{name}}}.{did_you_mean(name, known)} It may name {{study}}, "
                f"{{number}} and the trainer's options, as in 'r{{lora_r}}-{{number}}'.",
            )
        if is_study and "number" not in fields and not fields - known:
            yield Problem(
                ("run_name",),
                f"{template!r} would name all trials alike. Put {{number}} into it, as in "
                f"'{{study}}-{{number}}'.",
            )
        if not fields - known:
            values = {**option_defaults(options), **config, "study": "study", "number": 0}
            template.format_map(defaultdict(str, values))
    except (ValueError, TypeError) as error:
        yield Problem(("run_name",), f"{template!r} is no format of a name: {error}.")


def configs(space: SearchSpace) -> Iterable[dict[str, object]]:
    """Yield random configs of the space, then for one of them both ends of every range."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(NUM_DRAWS):
        trial = study.ask()
        try:
            yield space.suggest(trial)
        except SpaceError:
            continue
        for name, distribution in space.distributions(trial.params).items():
            for end in _ends(distribution):
                try:
                    yield space.resolve({**trial.params, name: end})
                except SpaceError:  # this value switches another parameter on or off
                    continue


def _ends(distribution: optuna.distributions.BaseDistribution) -> Iterable[Any]:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return distribution.choices
    if isinstance(
        distribution,
        optuna.distributions.FloatDistribution | optuna.distributions.IntDistribution,
    ):
        return (distribution.low, distribution.high)
    return ()


def strategy_problems(
    values: Mapping[str, object], space: SearchSpace | None, options: type[TrainerOptions] | None
) -> Iterable[Problem]:
    sampler = _part(SamplerSpec, values.get("sampler", {}))
    if sampler is not None:
        try:
            if sampler.type == GRID:
                if unknown := [*sampler.options]:
                    raise SpecError(f"the sampler 'grid' has no option {unknown[0]!r}.")
                if space is not None:
                    len(space.grid_points())
            else:
                build_sampler(sampler, 0, 0, grouped=False)
        except SpaceError as error:
            yield from error.problems
        except SpecError as error:
            yield Problem(("sampler",), str(error))
    pruner = _part(PrunerSpec, values.get("pruner", {}))
    if pruner is None:
        return
    try:
        judge = build_judge(pruner, num_validations=1)
    except SpecError as error:
        yield Problem(("pruner",), str(error))
        return
    if options is None or space is None or isinstance(judge, Never):
        return
    for name in (*space.names, *space.tied):
        if name in options.budget:
            yield Problem(
                ("space", name),
                f"may not be searched together with the pruner {pruner.type!r}, which compares trials "
                f"at the same share of the same budget. Move it to 'fixed:' or set "
                f"'pruner: {{type: none}}'.",
                at_key=True,
            )


def _part(model: type[_Model], value: object) -> _Model | None:
    try:
        return model.model_validate(value)
    except ValidationError:
        return None


_PARTS: Mapping[str, type[BaseModel]] = {
    "sampler": SamplerSpec,
    "pruner": PrunerSpec,
    "resources": ResourcesSpec,
    "budget": BudgetSpec,
}


def problem_of(item: Any, prefix: tuple[str, ...], model: type[BaseModel]) -> Problem:
    """Turn one of pydantic's errors into ours: what is wrong, the value, what is allowed."""
    location = tuple(part for part in item["loc"] if not str(part).startswith("function-"))
    owner = _PARTS.get(str(location[0]), model) if len(location) > 1 else model
    name = str(location[-1]) if location else ""
    if item["type"] == "extra_forbidden":
        fields = owner.model_fields
        return Problem(
            (*prefix, *location),
            f"unknown name.{did_you_mean(name, fields)} Known: {', '.join(sorted(fields))}.",
            at_key=True,
        )
    if item["type"] == "missing":
        where = f" under '{prefix[0]}:'" if any(prefix) else ""
        return Problem((*prefix, *location), f"is missing; give it{where}.")
    message = str(item["msg"]).removeprefix("Value error, ").removesuffix(".")
    given = item["input"]
    shown = "" if isinstance(given, dict | list) else f" It is {given!r}."
    return Problem((*prefix, *location), f"{message[:1].lower()}{message[1:]}.{shown}")
