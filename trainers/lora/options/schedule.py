"""Options of the learning rate and its course over a trial.

The tables here say what transformers' schedules take, so that a mistake is found without loading
torch; a test compares them with transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat, model_validator

SchedulerName = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]

_PLATEAU = (
    "mode",
    "factor",
    "patience",
    "threshold",
    "threshold_mode",
    "cooldown",
    "min_lr",
    "eps",
)
_MIN_LR = ("num_cycles", "min_lr", "min_lr_rate")
_STABLE = ("num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio")

SCHEDULER_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "constant": (),
    "constant_with_warmup": (),
    "inverse_sqrt": ("timescale",),
    "reduce_lr_on_plateau": _PLATEAU,
    "cosine_with_min_lr": _MIN_LR,
    "cosine_warmup_with_min_lr": (*_MIN_LR, "warmup_lr_rate"),
    "warmup_stable_decay": (*_STABLE, "num_cycles"),
    "greedy": (*_PLATEAU, "warmup", "max_lr", "smooth", "window_size", "reset_start"),
}
"""What ``lr_scheduler_kwargs`` may hold for each schedule."""

WITHOUT_WARMUP = frozenset({"constant", "reduce_lr_on_plateau", "greedy"})
BY_VALIDATION = frozenset({"reduce_lr_on_plateau", "greedy"})
"""Schedules that go by what validations say, not by the step alone."""

_NEEDED_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}
"""Of these, exactly one must be in ``lr_scheduler_kwargs``."""

_Options = TypeVar("_Options", bound="ScheduleOptions")


class ScheduleOptions(BaseModel):
    """How fast a trial learns, at each step."""

    learning_rate: PositiveFloat = Field(2e-4, description="Highest learning rate of the schedule.")
    lr_scheduler_type: SchedulerName = Field(
        "linear", description="Course of the learning rate, by transformers' names."
    )
    lr_scheduler_kwargs: dict[str, bool | int | float | str | None] = Field(
        {}, description="Further arguments of the schedule, as in {min_lr_rate: 0.1}."
    )
    warmup_steps: Annotated[float, Field(ge=0, lt=1)] | NonNegativeInt = Field(
        0, description="Steps of rising learning rate; below 1 a fraction of all steps."
    )

    @property
    def is_scheduled_by_validation(self) -> bool:
        """Whether the learning rate goes by what validations say, so that there must be some."""
        return self.lr_scheduler_type in BY_VALIDATION

    @model_validator(mode="after")
    def _schedule_takes_its_arguments(self: _Options) -> _Options:
        name, given = self.lr_scheduler_type, self.lr_scheduler_kwargs
        allowed = SCHEDULER_ARGUMENTS[name]
        unknown = [argument for argument in given if argument not in allowed]
        if unknown:
            raise ValueError(
                f"lr_scheduler_kwargs: {name} takes no {unknown[0]!r}. Known for it: "
                f"{', '.join(allowed) or 'none'}."
            )
        needed = _NEEDED_ARGUMENTS.get(name, ())
        if (
            needed
            and len([argument for argument in needed if given.get(argument) is not None]) != 1
        ):
            raise ValueError(
                f"lr_scheduler_type: {name} needs {'one of ' * (len(needed) > 1)}"
                f"{' and '.join(needed)} in lr_scheduler_kwargs, as in "
                f"'lr_scheduler_kwargs: {{{needed[-1]}: {10 if 'steps' in needed[-1] else 0.1}}}'."
            )
        return self

    @model_validator(mode="after")
    def _schedule_has_a_warmup(self: _Options) -> _Options:
        if self.warmup_steps and self.lr_scheduler_type in WITHOUT_WARMUP:
            other = "constant_with_warmup" if self.lr_scheduler_type == "constant" else "cosine"
            raise ValueError(
                f"lr_scheduler_type: {self.lr_scheduler_type} has no warmup, got warmup_steps: "
                f"{self.warmup_steps}. Leave it out, or give another schedule, as in "
                f"'lr_scheduler_type: {other}'."
            )
        return self
