"""Options of the method: which weights are trained, and from which start.

How they are trained is in ``optimization``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from trainers.lora.options.lists import split_at_commas

ALL_LINEAR = "all-linear"

SHARED = frozenset({"finetuning_type"})

_REGEX_CHARACTERS = frozenset("*+?|()[]{}^$\\")
"""A string with one of these is a pattern; a dot alone is part of a module's name."""

_REFUSED_STARTS: Mapping[str, str] = {
    "false": "it starts from a random change of the model, and is meant for tests of PEFT",
    "eva": "it needs passes over the data before the start",
    "corda": "it needs passes over the data before the start",
    "lora_ga": "it needs gradients of the data before the start",
    "loftq": "it quantizes the base model anew for each rank, and trials share one base model",
    "mica": "it freezes half of the adapter",
}
"""Starts that PEFT knows and that are not offered here, and why."""


def _read_targets(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.strip() in ("all", ALL_LINEAR):
        return ALL_LINEAR
    if not is_pattern(value):
        return split_at_commas(value)
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(
            f"{value!r} is read as a regular expression and is none: {error}. Give one that "
            f"matches whole module names, as in '.*self_attn\\.(q|v)_proj', or a list of names."
        ) from None
    return value


def is_pattern(targets: str | tuple[str, ...]) -> bool:
    """Return whether ``target_modules`` is a regular expression over whole module names."""
    return isinstance(targets, str) and not _REGEX_CHARACTERS.isdisjoint(targets)


def _known_start(value: object) -> object:
    name = str(value).lower()
    name = name.partition("_")[0] if name.startswith("corda") else name
    if name in _REFUSED_STARTS:
        raise ValueError(
            f"{value!r} is not supported: {_REFUSED_STARTS[name]}. Give true, gaussian, "
            f"orthogonal, pissa, pissa_niter_16 or olora."
        )
    return True if name == "true" else value


TargetModules = Annotated[
    Annotated[tuple[str, ...], Field(min_length=1)] | str,
    BeforeValidator(_read_targets, json_schema_input_type=str | list[str]),
]

ModuleNames = Annotated[
    tuple[str, ...], BeforeValidator(split_at_commas, json_schema_input_type=str | list[str])
]

Start = Annotated[
    Literal[True, "gaussian", "orthogonal", "pissa", "olora"]
    | Annotated[str, StringConstraints(pattern=r"^pissa_niter_[1-9][0-9]*$")],
    BeforeValidator(_known_start, json_schema_input_type=bool | str),
]

_Options = TypeVar("_Options", bound="MethodOptions")


class MethodOptions(BaseModel):
    """Which weights a trial trains."""

    finetuning_type: Literal["lora", "full"] = Field(
        "lora",
        description="lora trains an adapter beside the frozen base model; full trains all weights "
        "of a small model, one trial at a time.",
    )
    lora_r: PositiveInt = Field(16, description="Rank of the adapter.")
    lora_alpha: PositiveInt | PositiveFloat | None = Field(
        None, description="Scale of the adapter, divided by its rank. null: twice lora_r."
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout on the adapter's input."
    )
    target_modules: TargetModules = Field(
        "all-linear",
        description="Linear layers that get an adapter: names as in q_proj,v_proj; a regular "
        "expression over whole module names; or all-linear for all but the output layer.",
    )
    modules_to_save: ModuleNames = Field(
        (),
        description="Other modules that are trained whole, a copy for each trial, and saved with "
        "the adapter, as in embed_tokens,lm_head.",
    )
    use_rslora: bool = Field(
        False, description="Divide lora_alpha by the square root of the rank instead of the rank."
    )
    use_dora: bool = Field(
        False, description="DoRA: train the magnitude of each layer's weights beside the adapter."
    )
    init_lora_weights: Start = Field(
        True,
        description="How the adapter starts, by PEFT's names: true, gaussian, orthogonal, pissa, "
        "pissa_niter_16, olora. Drawn from seed.",
    )

    @property
    def alpha(self) -> float:
        """``lora_alpha``, or its default for this rank."""
        return 2 * self.lora_r if self.lora_alpha is None else self.lora_alpha

    @property
    def changes_base(self) -> bool:
        """Whether the adapter's start takes its part out of the base model's weights."""
        return str(self.init_lora_weights).startswith(("pissa", "olora"))

    @property
    def needs_own_base(self) -> str | None:
        """Why no other trial can be on the same base model; None if others can."""
        if self.finetuning_type == "full":
            return "finetuning_type: full trains the base model's own weights"
        if self.changes_base:
            return f"init_lora_weights: {self.init_lora_weights} changes the base model's weights"
        return None

    @property
    def packing_problem(self) -> str | None:
        """Why such a trial cannot be part of a pass for several trials; None if it can."""
        if self.use_dora:
            return "use_dora: true scales every layer's whole weights anew for each trial"
        if self.modules_to_save:
            names = ", ".join(self.modules_to_save)
            return f"modules_to_save: {names} is computed with other weights for each trial"
        return None if self.finetuning_type == "lora" else self.needs_own_base

    @model_validator(mode="after")
    def _full_has_no_adapter(self: _Options) -> _Options:
        if self.finetuning_type != "full":
            return self
        fields = MethodOptions.model_fields
        of_adapters = [name for name in fields if name != "finetuning_type"]
        given = [name for name in of_adapters if getattr(self, name) != fields[name].default]
        if given:
            raise ValueError(
                f"finetuning_type: full trains no adapter, so {', '.join(given)} would change "
                f"nothing. Leave out {'it' if len(given) == 1 else 'them'}, or train "
                f"finetuning_type: lora."
            )
        return self

    @model_validator(mode="after")
    def _orthogonal_pairs_ranks(self: _Options) -> _Options:
        if self.init_lora_weights == "orthogonal" and self.lora_r % 2:
            raise ValueError(
                f"init_lora_weights: orthogonal needs an even lora_r, got {self.lora_r}. Give "
                f"lora_r: {self.lora_r + 1}."
            )
        return self
