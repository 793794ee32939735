"""Options of the optimization: the optimizer, and the batches that make its gradients.

The course of the learning rate is in ``schedule``. The tables here say what transformers'
optimizers take, so that a mistake is found without loading torch; a test compares them with
transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

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


def _is_number_or_switch(value: str) -> bool:
    if value.lower() in ("true", "false"):
        return True
    try:
        float(value)
    except ValueError:
        return False
    return True
