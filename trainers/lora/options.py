"""The options of the LoRA trainer, by the names that transformers, PEFT and TRL give them.

Knows no torch: what can only be checked with the model or the data at hand is checked there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from trainers.lora.aliases import ALIASES, IGNORED, translate_values
from trainers.protocol import TrainerOptions

ALL_LINEAR = "all-linear"

DataFormat = Literal["auto", "alpaca", "messages", "sharegpt", "prompt_completion", "text"]
"""How a row of a data file is laid out. ``auto`` goes by the columns of the first row."""

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


class LoraOptions(TrainerOptions):
    """Everything that one LoRA trial needs to know."""

    shared: ClassVar[frozenset[str]] = frozenset(
        {
            "model_name_or_path",
            "model_revision",
            "trust_remote_code",
            "dtype",
            "quantization_bit",
            "attn_implementation",
            "gradient_checkpointing",
            "train_file",
            "validation_file",
            "val_size",
            "data_format",
            "data_seed",
            "default_system",
            "max_length",
            "max_train_samples",
            "eval_max_samples",
            "per_device_eval_batch_size",
        }
    )
    budget: ClassVar[frozenset[str]] = frozenset({"max_steps", "num_train_epochs", "eval_steps"})
    paths: ClassVar[frozenset[str]] = frozenset(
        {"model_name_or_path", "train_file", "validation_file", "dataset_dir"}
    )
    aliases: ClassVar[Mapping[str, str]] = ALIASES
    ignored: ClassVar[Mapping[str, str]] = IGNORED
    """Other tools' options that a study decides itself: ``translate`` drops them. Name -> why."""

    # The model.
    model_name_or_path: str = Field(
        min_length=1, description="The base model: a folder, a hub id, or a GGUF file."
    )
    model_revision: str | None = Field(
        None, description="Branch, tag or commit of a model on the hub."
    )
    trust_remote_code: bool = Field(
        False, description="Whether to run Python code that comes with the model."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Data type of the base model. auto: bfloat16 where the device computes in it, "
        "else float16 on a GPU and float32 on a CPU. Adapter weights are always float32.",
    )
    quantization_bit: Literal[4] | None = Field(
        None, description="4 loads the base model in 4-bit NF4 (QLoRA); null leaves it as it is."
    )
    attn_implementation: str | None = Field(
        None, description="Attention as transformers names it: sdpa, eager, flash_attention_2."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, slower."
    )

    # The data.
    train_file: str = Field(
        min_length=1, description="Training examples: a JSON, JSONL, CSV or Parquet file."
    )
    validation_file: str | None = Field(
        None, description="Validation examples, in the same format as train_file."
    )
    val_size: Annotated[float, Field(gt=0, lt=1)] | PositiveInt | None = Field(
        None,
        description="Part of train_file to validate on: below 1 a fraction, else a number of "
        "examples. Give either this or validation_file.",
    )
    data_format: DataFormat = Field(
        "auto", description="How rows are laid out; auto goes by the columns of the first row."
    )
    data_seed: int = Field(
        42, description="Seed of the validation split and of the samples that the limits keep."
    )
    default_system: str | None = Field(
        None, description="System message for conversations that have none."
    )
    max_length: Annotated[int, Field(ge=2)] = Field(
        512, description="Tokens of an example; what is beyond is cut off."
    )
    max_train_samples: PositiveInt | None = Field(
        None, description="Train on a random sample of this many examples."
    )
    eval_max_samples: PositiveInt | None = Field(
        None, description="Validate on a random sample of this many examples."
    )
    per_device_eval_batch_size: PositiveInt = Field(
        8, description="Examples in one forward pass of a validation."
    )

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

    # The budget.
    num_train_epochs: PositiveFloat = Field(
        3.0, description="Passes over the training set, unless max_steps is given."
    )
    max_steps: Literal[-1] | PositiveInt = Field(
        -1, description="Optimizer steps of a full trial; -1 goes by num_train_epochs."
    )
    eval_steps: Annotated[float, Field(gt=0, lt=1)] | PositiveInt = Field(
        0.2,
        description="Validate every so many steps; below 1 at every such fraction of the trial. "
        "The last step always validates.",
    )
    max_loss: PositiveFloat | None = Field(
        None,
        description="A trial whose training or validation loss is above this ends as diverged. "
        "null: twice the loss of a uniform guess, 2 ln(vocabulary).",
    )
    early_stopping_patience: PositiveInt | None = Field(
        None, description="End a trial after this many validations without a better eval_loss."
    )
    early_stopping_threshold: NonNegativeFloat = Field(
        0.0, description="How much lower eval_loss must be to count as better."
    )

    @property
    def alpha(self) -> float:
        """``lora_alpha``, or its default for this rank."""
        return 2 * self.lora_r if self.lora_alpha is None else self.lora_alpha

    def num_validations(self) -> int | None:
        """Return the validations of a full trial; None if the data decides its length."""
        if self.eval_steps < 1:
            return math.ceil(round(1 / self.eval_steps, 6))
        return -(-self.max_steps // int(self.eval_steps)) if self.max_steps > 0 else None

    @field_validator("quantization_bit", mode="before")
    @classmethod
    def _four_bits_only(cls, value: object) -> object:
        if value not in (None, 4):
            raise ValueError(
                f"{value!r} is not supported: give 4 (NF4), or leave it out. 8 bits train "
                f"several times slower than 4."
            )
        return value

    @model_validator(mode="after")
    def _one_validation_set(self) -> LoraOptions:
        if (self.validation_file is None) == (self.val_size is None):
            given = "neither" if self.val_size is None else "both"
            raise ValueError(
                f"give validation_file or val_size, got {given}: trials are compared by their "
                f"loss on one validation set, as in 'val_size: 0.1'."
            )
        return self

    @classmethod
    def translate(cls, given: Mapping[str, object]) -> dict[str, object]:
        return super().translate(translate_values(given))
