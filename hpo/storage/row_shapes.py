"""What a study's rows must look like before anyone works with them.

Rows are written by `hpo` alone, but read by every later version of it, from disks that fail and servers
that others can write to. What does not fit is one message that names the study. Reads no database.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, TrialState
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)
from sqlalchemy.exc import SQLAlchemyError

from hpo.errors import HpoError, StudyError
from hpo.spec import StudySpec
from hpo.storage.attributes import CONFIG, CONSTRAINTS, DIGEST, END, LOSSES, REPORT, SAMPLER_STATE
from hpo.storage.database_faults import UNREADABLE
from search_spaces import SpaceError

_ADVICE = (
    "Restore the database from a backup; or begin anew: `hpo run` with another 'study:', or another "
    "--storage."
)
_MAX_SHOWN = 5


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Report(_Row):
    step: StrictInt = Field(ge=0)
    metrics: dict[StrictStr, float]
    notes: list[StrictStr] = []


class _End(_Row):
    reason: StrictStr
    message: StrictStr | None = None
    notes: list[StrictStr] = []


_SHAPES: Mapping[str, TypeAdapter[Any]] = {
    CONFIG: TypeAdapter(dict[StrictStr, Any]),
    DIGEST: TypeAdapter(StrictStr),
    END: TypeAdapter(_End | None),
    LOSSES: TypeAdapter(list[StrictStr]),
    SAMPLER_STATE: TypeAdapter(dict[StrictStr, Any]),
    CONSTRAINTS: TypeAdapter(list[float]),
}
_REPORT: TypeAdapter[Any] = TypeAdapter(_Report)


def this_version() -> str:
    """Return the version of `hpo` that runs; a study is stored with it."""
    try:
        return importlib.metadata.version("hpo")
    except importlib.metadata.PackageNotFoundError:  # run from its folder, not installed
        return "unknown"


def stored_spec(name: str, where: str, stored: object, version: object = None) -> StudySpec:
    """Return a study's spec as it was stored.

    Args:
        name: The study's name in the database.
        where: The database, for the message.
        stored: What is there.
        version: The `hpo` that wrote it, as far as it is stored.

    Raises:
        StudyError: It is no spec that this version knows.
    """
    wrote = f"hpo {version}" if isinstance(version, str) else "another version of hpo"
    try:
        spec = StudySpec.model_validate(stored)
    except ValidationError as error:
        items = error.errors(include_url=False, include_context=False)
        unknown = [str(i["loc"][0]) for i in items if i["type"] == "extra_forbidden"]
        if unknown and len(unknown) == len(items):
            raise StudyError(
                f"the study {name!r} in {where} was written by {wrote}: this is {this_version()}, and "
                f"does not know {', '.join(map(repr, unknown[:_MAX_SHOWN]))}. Update hpo, or go on "
                f"with the version that wrote it."
            ) from None
        said = "; ".join(
            f"{'.'.join(map(str, i['loc'])) or 'spec'}: {i['msg']}" for i in items[:_MAX_SHOWN]
        )
        raise StudyError(
            f"the study {name!r} in {where} cannot be read ({said}): its spec is damaged, or was "
            f"written by {wrote}; this is {this_version()}. {_ADVICE}"
        ) from None
    if spec.study != name:
        raise StudyError(
            f"the study {name!r} in {where} has the spec of a study {spec.study!r}: its row was "
            f"changed. {_ADVICE}"
        )
    return spec


def check_trial(study: str, trial: FrozenTrial, *, light: bool) -> None:
    """Check all of a stored trial that `hpo` works with.

    Args:
        study: Its study's name.
        trial: As it was read.
        light: It was read without its config, if it has ended.

    Raises:
        StudyError: Something of it has another shape than `hpo` writes.
    """
    attrs = trial.system_attrs
    for key, value in attrs.items():
        shape = _REPORT if key.startswith(REPORT) else _SHAPES.get(key)
        if shape is None:
            continue
        try:
            shape.validate_python(value)
        except ValidationError as error:
            item = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(map(str, (key, *item["loc"])))
            raise _damaged(study, trial.number, f"{place}: {item['msg']}") from None
    if not isinstance(trial.number, int) or trial.number < 0:
        raise _damaged(study, trial.number, "no trial has such a number")
    if trial.state is TrialState.COMPLETE and not (trial.values and trial.intermediate_values):
        raise _damaged(study, trial.number, "it is COMPLETE without a validation or a value")
    if not all(isinstance(name, str) for name in trial.params):
        raise _damaged(study, trial.number, "the name of a parameter is no text")
    if CONFIG not in attrs and not (light and trial.state.is_finished()):
        raise _damaged(study, trial.number, f"it has no {CONFIG}")
    for index, value in trial.intermediate_values.items():
        is_index = isinstance(index, int) and index >= 1
        if not (is_index and isinstance(value, int | float) and math.isfinite(value)):
            raise _damaged(study, trial.number, f"validation {index!r} is {value!r}")


def check_order(study: str, trial: FrozenTrial, num_known: int) -> None:
    """Check that a trial is known, or the next one.

    Raises:
        StudyError: One between is missing.
    """
    if trial.number > num_known:
        raise _damaged(study, trial.number, f"there is no trial {num_known} before it")


def _damaged(study: str, number: int, what: str) -> StudyError:
    return StudyError(
        f"trial {number} of the study {study!r} cannot be read: {what}. Its rows are damaged, or of "
        f"another version of hpo (this is {this_version()}). {_ADVICE}"
    )


@contextlib.contextmanager
def readable(study: str, where: str) -> Iterator[None]:
    """Turn what libraries raise over rows that they cannot read into one message.

    Raises:
        StudyError: Names the study, and what to do.
    """
    try:
        yield
    except (HpoError, SQLAlchemyError, OptunaError):
        raise
    except SpaceError as error:
        reason = " ".join(str(error).split())
        raise StudyError(
            f"the search space that is stored with the study {study!r} in {where} cannot be read: "
            f"{reason} {_ADVICE}"
        ) from None
    except UNREADABLE as error:
        if isinstance(error.__cause__, SQLAlchemyError):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise StudyError(
            f"the rows of the study {study!r} in {where} cannot be read ({reason}): they are damaged, "
            f"or something else than hpo has written them. {_ADVICE}"
        ) from error
