"""From a user's YAML file to a StudySpec, with everything that is wrong in it reported at once.

Merges the base file, translates other tools' names and makes paths absolute. The fields themselves
are in ``hpo.spec``, what may be wrong with their values in ``hpo.spec_checks``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from hpo.document import Document, read_document
from hpo.errors import SpecError
from hpo.lookup import find_trainer
from hpo.spec import DEFAULT_RUN_NAME, PrunerSpec, StudySpec, tracker_names
from hpo.spec_checks import (
    configs,
    fixed_problems,
    metric_problems,
    option_problems,
    problem_of,
    run_name_problems,
    strategy_problems,
)
from hpo.store.address import absolute
from hpo.store.address import problem_of as problem_of_address
from search_spaces import SearchSpace, SpaceError
from search_spaces.problems import Problem, did_you_mean
from trainers.protocol import TrainerOptions

DEFAULT_STORAGE = "sqlite:///hpo.db"
KEYS_NOT_OPTIONS = {"report_to", "run_name"}
FILE_ONLY_KEYS = ("storage", "base")
"""Keys of the file that are no part of a stored study: where it is stored, and what was merged."""


@dataclass(frozen=True)
class SpecFile:
    """A checked file.

    Attributes:
        spec: The study.
        storage: The database's URL; may hold a password, so it is never stored or printed.
    """

    spec: StudySpec
    storage: str


def read_spec_file(path: Path) -> SpecFile:
    """Read and check a study's file.

    Raises:
        SpecError: Lists every problem with its line, column, value and what is allowed.
    """
    document = read_document(path)
    problems: list[Problem] = []
    values = _take_base(document, problems)
    storage = _storage(values.pop("storage", DEFAULT_STORAGE), path.parent, problems)
    known = {*StudySpec.model_fields, *FILE_ONLY_KEYS}
    for key in [key for key in values if key not in known]:
        problems.append(
            Problem(
                (key,),
                f"unknown key.{did_you_mean(key, known)} Known: {', '.join(sorted(known))}. "
                f"Options of the trainer go under 'fixed:' or 'space:'.",
                at_key=True,
            )
        )
        del values[key]
    options = options_of(values.get("trainer", "lora"), problems)
    if options is not None:
        _translate_fixed(values, options, path.parent, problems)
        _translate_space(values, options, problems)
        _complete_for_metric(values, options)
    spec = _validate(values, path.parent, problems)
    space = _parse_space(values, options, problems)
    if options is not None and space is not None:
        fixed = _mapping(values.get("fixed"))
        problems += option_problems(options, space, fixed)
        problems += metric_problems(values, options, space, fixed)
        name = str(values.get("run_name", DEFAULT_RUN_NAME))
        problems += run_name_problems(name, options, next(iter(configs(space)), {}), is_study=True)
    elif options is not None:
        problems += fixed_problems(options, _mapping(values.get("fixed")))
    problems += strategy_problems(values, space, options)
    if problems or spec is None or space is None or options is None:
        raise document.error(unique(problems))
    return SpecFile(spec=_sized(spec, space, options), storage=storage)


def resolve_storage(url: str, folder: Path) -> str:
    """Return a storage URL with environment variables filled in and a SQLite path made absolute.

    Raises:
        SpecError: It is no database URL.
    """
    if url.startswith("$"):  # the whole URL is in the environment
        url = os.path.expandvars(url)
    if "://" not in url and url.endswith((".db", ".sqlite", ".sqlite3")):
        url = f"sqlite:///{url}"
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError, NoSuchModuleError):
        raise SpecError(
            "storage: is no database URL. Give sqlite:///hpo.db or "
            "postgresql+psycopg://user:${PGPASSWORD}@host/database."
        ) from None
    # Filled in after parsing: a password may hold an @ or a slash.
    filled: dict[str, Any] = {
        part: os.path.expandvars(value)
        for part in ("username", "password", "host", "database")
        if isinstance(value := getattr(parsed, part), str)
    }
    for part, value in filled.items():
        if "${" in value:
            raise SpecError(f"storage: a variable of the {part} is not set in the environment.")
    parsed = parsed.set(**filled)
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise SpecError(
                "storage: an in-memory database dies with the process; give a file, as in "
                "sqlite:///hpo.db."
            )
        database = Path(str(parsed.database)).expanduser()
        return f"sqlite:///{(folder / database).resolve()}"
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    raise SpecError(
        f"storage: the database {backend!r} is not supported. Use sqlite:///FILE or "
        f"postgresql+psycopg://USER@HOST/DATABASE."
    )


def _storage(value: object, folder: Path, problems: list[Problem]) -> str:
    try:
        if not isinstance(value, str):
            raise SpecError("storage: must be a URL, as in sqlite:///hpo.db.")
        return resolve_storage(value, folder)
    except SpecError as error:
        problems.append(Problem(("storage",), str(error).removeprefix("storage: ")))
        return DEFAULT_STORAGE


def _take_base(document: Document, problems: list[Problem]) -> dict[str, object]:
    """Return the values with the base file's options under ``fixed``, where they lose to the file's."""
    values = dict(document.values)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        problems.append(Problem(("base",), f"must be the path of a YAML file, not {base!r}."))
        return values
    path = document.path.parent / base
    try:
        given = dict(read_document(path).values)
        _take_trackers(given, values, path)
        options = options_of(values.get("trainer", "lora"), [])
        if options is not None:
            given = translated(given, options, path.parent, ("base",), problems)
            given = {name: value for name, value in given.items() if name != "output_dir"}
    except SpecError as error:
        problems.append(Problem(("base",), str(error)))
        return values
    searched = _mapping(values.get("space"))
    names = {options.aliases.get(name, name) for name in searched} if options else set(searched)
    own = _mapping(values.get("fixed"))
    own_names = {options.aliases.get(name, name) for name in own} if options else set(own)
    kept = {name: value for name, value in given.items() if name not in names | own_names}
    if options is not None:
        unknown = [name for name in kept if name not in options.model_fields]
        problems += [
            Problem(
                ("base",),
                f"{path}: unknown option {name!r}.{did_you_mean(name, options.model_fields)} "
                f"Remove it from the file.",
            )
            for name in unknown
        ]
        kept = {name: value for name, value in kept.items() if name not in unknown}
    values["fixed"] = {**kept, **own}
    return values


def _take_trackers(given: dict[str, object], values: dict[str, object], path: Path) -> None:
    """Move a base's `report_to:` to the study, unless it has one."""
    if "report_to" not in given:
        return
    try:
        found = tracker_names(given.pop("report_to"))
    except ValueError as error:
        raise SpecError(f"{path}: report_to: {error}") from None
    values.setdefault("report_to", found)


def options_of(trainer: object, problems: list[Problem]) -> type[TrainerOptions] | None:
    """Return the options of a trainer that a file names, or add a problem."""
    try:
        if not isinstance(trainer, str):
            raise SpecError(f"must be a name, not {trainer!r}.")
        return find_trainer(trainer).Options
    except SpecError as error:
        problem = Problem(("trainer",), str(error))
        if problem not in problems:
            problems.append(problem)
        return None


def _translate_fixed(
    values: dict[str, object],
    options: type[TrainerOptions],
    folder: Path,
    problems: list[Problem],
) -> None:
    fixed = values.get("fixed")
    if isinstance(fixed, dict):
        for name in KEYS_NOT_OPTIONS & fixed.keys() - options.model_fields.keys():
            problems.append(
                Problem(
                    ("fixed", name),
                    "is a key of the study, not of its trainer: move it to the top of the file.",
                    at_key=True,
                )
            )
        values["fixed"] = translated(fixed, options, folder, ("fixed",), problems)


def translated(
    given: Mapping[str, object],
    options: type[TrainerOptions],
    folder: Path,
    where: tuple[str, ...],
    problems: list[Problem],
) -> dict[str, object]:
    """Return options by their own names, with paths that start at the file's folder."""
    placed = {
        name: _absolute(value, folder)
        if options.aliases.get(name, name) in options.paths
        else value
        for name, value in {**options.default_paths, **given}.items()
    }
    try:
        return options.translate(placed)
    except ValueError as error:
        problems.append(Problem(where, str(error)))
        return {}


def _absolute(value: object, folder: Path) -> object:
    """Return a path that starts at ``folder``; what is no path (a hub's name) stays as it is."""
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    if isinstance(value, dict):  # one dataset of several, or validation sets by name
        places = {"path", "data_files"} & value.keys() or value.keys()
        return {k: _absolute(v, folder) if k in places else v for k, v in value.items()}
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    looks_like_path = value.startswith((".", "~", "/")) or bool(path.suffix in _FILE_SUFFIXES)
    if looks_like_path or os.path.exists(folder / path):
        return os.path.normpath(folder.resolve() / path)
    return value


_FILE_SUFFIXES = {".json", ".jsonl", ".csv", ".parquet", ".txt", ".gguf", ".yaml", ".yml", ".jinja"}


def _complete_for_metric(values: dict[str, object], options: type[TrainerOptions]) -> None:
    """Add to ``fixed`` what follows from the study's metric, where the file names one."""
    searched = _mapping(values.get("space"))
    metric, fixed = values.get("metric"), _mapping(values.get("fixed"))
    if isinstance(metric, str):
        maximize = values.get("direction") == "maximize"
        completed = completed_for(options, fixed, metric, maximize=maximize)
        values["fixed"] = {k: v for k, v in completed.items() if k in fixed or k not in searched}


def completed_for(
    options: type[TrainerOptions], given: Mapping[str, object], metric: str, *, maximize: bool
) -> dict[str, object]:
    """Return options with what follows from the metric, if what is given allows it."""
    completed = options.for_metric(given, metric, "maximize" if maximize else "minimize")
    known = set(_messages(options, given))
    return completed if set(_messages(options, completed)) <= known else dict(given)


def _messages(options: type[TrainerOptions], given: Mapping[str, object]) -> Iterable[str]:
    try:
        options.model_validate(given)
    except ValidationError as error:
        return [item["msg"] for item in error.errors()]
    return []


def _translate_space(
    values: dict[str, object], options: type[TrainerOptions], problems: list[Problem]
) -> None:
    """Replace aliases among the searched and enqueued names, so that expressions know one name."""
    space = values.get("space")
    if isinstance(space, dict):
        for name in [name for name in space if name in options.aliases]:
            problems.append(
                Problem(
                    ("space", name),
                    f"in a space use the name {options.aliases[name]!r}, which expressions and "
                    f"reports use too.",
                    at_key=True,
                )
            )


def _validate(values: dict[str, object], folder: Path, problems: list[Problem]) -> StudySpec | None:
    if isinstance(values.get("output_dir", ""), str):
        given = str(values.get("output_dir", "runs"))
        if problem := problem_of_address(given):
            problems.append(Problem(("output_dir",), problem))
        values["output_dir"] = absolute(given, folder)
    if "space" not in values:
        problems.append(
            Problem(
                (),
                "'space' is missing: name at least one option to search, as in "
                "'space: {learning_rate: {type: float, low: 2.0e-5, high: 2.0e-3, log: true}}'. "
                "For one config, without a search, type `hpo train FILE`.",
            )
        )
    try:
        return StudySpec.model_validate(values)
    except ValidationError as error:
        problems += [
            problem_of(item, (), StudySpec)
            for item in error.errors()
            if item["loc"] != ("space",) or item["type"] != "missing"
        ]
        return None


def _parse_space(
    values: Mapping[str, object], options: type[TrainerOptions] | None, problems: list[Problem]
) -> SearchSpace | None:
    if "space" not in values:
        return None
    known = None if options is None else options.model_fields.keys()
    document = {key: values[key] for key in ("space", "constraints", "enqueue") if key in values}
    try:
        return SearchSpace.parse(document, _mapping(values.get("fixed")), known_names=known)
    except SpaceError as error:
        problems += error.problems
        return None


def _sized(spec: StudySpec, space: SearchSpace, options: type[TrainerOptions]) -> StudySpec:
    """Fill in how many validations a full trial has, which Hyperband's brackets need."""
    if spec.pruner.type != "hyperband" or "max_resource" in spec.pruner.options:
        return spec
    config = next(iter(configs(space)))
    count = options.model_validate({**spec.fixed, **config}).num_validations()
    if count is None:
        raise SpecError(
            "pruner: hyperband needs the number of validations of a full trial. Set 'max_steps:' or "
            "an 'eval_steps:' below 1, or give it as 'pruner: {type: hyperband, max_resource: 5}'."
        )
    pruner = PrunerSpec(**{**spec.pruner.options, "type": "hyperband", "max_resource": count})
    return spec.model_copy(update={"pruner": pruner})


def _mapping(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, dict) else {}


def unique(problems: Iterable[Problem]) -> list[Problem]:
    """Drop what says the same of the same place, and types complaints of one value."""
    seen: dict[tuple[object, str], Problem] = {}
    for problem in problems:
        seen.setdefault((problem.path, problem.message), problem)
    return list(seen.values())
