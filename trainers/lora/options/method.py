"""Options of the method: the adapter, the optimizer and its schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

ALL_LINEAR = "all-linear"

SHARED: frozenset[str] = frozenset()

SchedulerName = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]
"""Those of transformers that need no further arguments and depend on nothing but the step."""


def _split_names(value: object) -> object:
    """Turn ``"q_proj, v_proj"`` into a list; leave everything else to the type check."""
    if not isinstance(value, str):
        return value
    names = [name.strip() for name in value.split(",") if name.strip()]
    if names in (["all"], [ALL_LINEAR]):
        return ALL_LINEAR
    return names


TargetModules = Annotated[
    Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)],
    BeforeValidator(_split_names, json_schema_input_type=str | list[str]),
]


class MethodOptions(BaseModel):
    """How a trial learns."""

    # The adapter.
    lora_r: PositiveInt = Field(16, description="Rank of the adapter.")
    lora_alpha: PositiveInt | PositiveFloat | None = Field(
        None, description="Scale of the adapter, divided by its rank. null: twice lora_r."
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout on the adapter's input."
    )
    target_modules: TargetModules = Field(
        "all-linear",
        description="Linear layers that get an adapter: names as in q_proj,v_proj, or all-linear "
        "for all but the output layer.",
    )
    use_rslora: bool = Field(
        False, description="Divide lora_alpha by the square root of the rank instead of the rank."
    )

    # The optimization.
    seed: int = Field(42, description="Seed of the adapter's start, the data order and dropout.")
    learning_rate: PositiveFloat = Field(2e-4, description="Highest learning rate of the schedule.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Decoupled weight decay.")
    optim: Literal["adamw_torch"] = Field("adamw_torch", description="The optimizer.")
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="AdamW's beta1.")
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="AdamW's beta2.")
    adam_epsilon: PositiveFloat = Field(1e-8, description="AdamW's epsilon.")
    lr_scheduler_type: SchedulerName = Field(
        "linear", description="Course of the learning rate, by transformers' names."
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

    @property
    def alpha(self) -> float:
        """``lora_alpha``, or its default for this rank."""
        return 2 * self.lora_r if self.lora_alpha is None else self.lora_alpha
