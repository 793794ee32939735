"""Options of the optimization: the optimizer, its learning rate over time, and the batches.

The tables here say what transformers' optimizers and schedules take, so that a mistake is found
without loading torch; a test compares them with transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

SHARED: frozenset[str] = frozenset()

OptimizerName = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_8bit",
    "paged_ademamix_32bit",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "lion_8bit",
    "lion_32bit",
    "paged_lion_8bit",
    "paged_lion_32bit",
]

_LOW_RANK = "it projects the gradients of whole weights, and its projections cannot be saved here"
_IN_BACKWARD = "it updates weights inside the backward pass, so that no gradient can be clipped"
_TWO_WEIGHTS = "it trains and validates on different weights, and needs the package schedulefree"

REFUSED_OPTIMIZERS: Mapping[str, str] = {
    "adamw_torch_xla": "it runs on TPUs only",
    "adamw_torch_npu_fused": "it runs on Ascend NPUs only",
    "adamw_anyprecision": "it needs the package torchdistx, which is no longer maintained",
    "adamw_torch_4bit": "it needs the package torchao; adamw_8bit saves memory too",
    "adamw_torch_8bit": "it needs the package torchao; adamw_8bit is bitsandbytes' one",
    "galore_adamw": _LOW_RANK,
    "galore_adamw_8bit": _LOW_RANK,
    "galore_adafactor": _LOW_RANK,
    "galore_adamw_layerwise": _IN_BACKWARD,
    "galore_adamw_8bit_layerwise": _IN_BACKWARD,
    "galore_adafactor_layerwise": _IN_BACKWARD,
    "apollo_adamw": _LOW_RANK,
    "apollo_adamw_layerwise": _IN_BACKWARD,
    "lomo": _IN_BACKWARD,
    "adalomo": _IN_BACKWARD,
    "grokadamw": "it needs the package grokadamw",
    "schedule_free_radam": _TWO_WEIGHTS,
    "schedule_free_adamw": _TWO_WEIGHTS,
    "schedule_free_sgd": _TWO_WEIGHTS,
    "stable_adamw": "it needs the package torch-optimi",
}
"""Optimizers that transformers names and that are not offered here, and why."""

_ADEMAMIX = ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")

OPTIMIZER_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
    **dict.fromkeys(("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"), ("alpha", "eps")),
    **dict.fromkeys(("ademamix", "ademamix_8bit"), _ADEMAMIX),
    **dict.fromkeys(("paged_ademamix_8bit", "paged_ademamix_32bit"), _ADEMAMIX),
}
"""What ``optim_args`` may hold for each optimizer that takes any."""

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

_Options = TypeVar("_Options", bound="OptimizationOptions")


def _known_optimizer(value: object) -> object:
    if isinstance(value, str) and value in REFUSED_OPTIMIZERS:
        raise ValueError(
            f"{value!r} is not supported: {REFUSED_OPTIMIZERS[value]}. Known: "
            f"{', '.join(get_args(OptimizerName))}."
        )
    return value


def _join_arguments(value: object) -> object:
    """Write a mapping the way transformers takes it: ``momentum=0.9,nesterov=true``."""
    if not isinstance(value, Mapping):
        return value
    return ",".join(f"{name}={str(of).lower()}" for name, of in value.items())


OptimizerArguments = Annotated[
    str,
    BeforeValidator(_join_arguments, json_schema_input_type=str | dict[str, bool | int | float]),
]


class OptimizationOptions(BaseModel):
    """How a trial's weights are trained."""

    seed: int = Field(
        42, description="Seed of the adapter's start, the data order, dropout and noise."
    )
    learning_rate: PositiveFloat = Field(2e-4, description="Highest learning rate of the schedule.")
    loraplus_lr_ratio: PositiveFloat | None = Field(
        None,
        description="LoRA+: the learning rate of the adapter's second factor (B), as a multiple of "
        "learning_rate; 16 is usual.",
    )
    weight_decay: NonNegativeFloat = Field(
        0.0, description="Weight decay; biases and norms are left out."
    )
    optim: Annotated[OptimizerName, BeforeValidator(_known_optimizer)] = Field(
        "adamw_torch", description="The optimizer, by transformers' names."
    )
    optim_args: OptimizerArguments | None = Field(
        None, description="Further arguments of the optimizer, as in momentum=0.9,nesterov=true."
    )
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="beta1 of AdamW, AdEMAMix and Lion."
    )
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="beta2 of AdamW, AdEMAMix and Lion."
    )
    adam_epsilon: PositiveFloat = Field(1e-8, description="Epsilon of AdamW and AdEMAMix.")
    lr_scheduler_type: SchedulerName = Field(
        "linear", description="Course of the learning rate, by transformers' names."
    )
    lr_scheduler_kwargs: dict[str, bool | int | float | str | None] = Field(
        {}, description="Further arguments of the schedule, as in {min_lr_rate: 0.1}."
    )
    warmup_steps: Annotated[float, Field(ge=0, lt=1)] | NonNegativeInt = Field(
        0, description="Steps of rising learning rate; below 1 a fraction of all steps."
    )
    per_device_train_batch_size: PositiveInt = Field(
        4, description="Examples in one forward and backward pass."
    )
    gradient_accumulation_steps: PositiveInt = Field(
        1, description="Passes whose gradients make one optimizer step."
    )
    max_grad_norm: NonNegativeFloat = Field(
        1.0, description="Clip the trial's gradient to this norm; 0 does not clip."
    )
    neftune_noise_alpha: NonNegativeFloat | None = Field(
        None,
        description="NEFTune: strength of the noise on embeddings in training; 5 is usual, null "
        "adds none.",
    )

    @property
    def parsed_optim_args(self) -> dict[str, str]:
        """``optim_args`` by name, with values as they were written."""
        pairs = (self.optim_args or "").replace(" ", "").split(",")
        parts = [pair.partition("=") for pair in pairs if pair]
        return {name: value for name, _, value in parts}

    @model_validator(mode="after")
    def _optimizer_takes_its_arguments(self: _Options) -> _Options:
        allowed = OPTIMIZER_ARGUMENTS.get(self.optim, ())
        for name, value in self.parsed_optim_args.items():
            if name not in allowed:
                raise ValueError(
                    f"optim_args: {self.optim} takes no {name!r}. Known for it: "
                    f"{', '.join(allowed) or 'none'}."
                )
            if not _is_number_or_switch(value):
                raise ValueError(
                    f"optim_args: {name}={value!r} is no number and not true or false. Write "
                    f"them as in 'momentum=0.9,nesterov=true'."
                )
        return self

    @model_validator(mode="after")
    def _betas_have_an_effect(self: _Options) -> _Options:
        used = {"adam_beta1", "adam_beta2", "adam_epsilon"}
        if "lion" in self.optim:
            used = {"adam_beta1", "adam_beta2"}
        elif "adam" not in self.optim and "ademamix" not in self.optim:
            used = set()
        fields = OptimizationOptions.model_fields
        for name in ("adam_beta1", "adam_beta2", "adam_epsilon"):
            if name not in used and getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name}: {getattr(self, name)} has no effect on optim: {self.optim}. Leave it "
                    f"out, or give optim_args."
                )
        return self

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


def _is_number_or_switch(value: str) -> bool:
    if value.lower() in ("true", "false"):
        return True
    try:
        float(value)
    except ValueError:
        return False
    return True
