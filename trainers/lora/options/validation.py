"""Options of the budget and of validation: how long a trial trains, when and on what it validates.

What follows from a validation, as an early end, is in ``stopping``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from trainers.lora.options.answer_metrics import BleuTokenizer, check_metric_names
from trainers.lora.options.lists import split_at_commas

SHARED = frozenset(
    {
        "eval_strategy",
        "eval_set",
        "eval_start_share",
        "eval_first_pass_samples",
        "eval_async",
        "eval_max_samples",
        "per_device_eval_batch_size",
        "predict_with_generate",
        "eval_metrics",
        "max_new_tokens",
        "bleu_tokenize",
        "eval_generate_max_samples",
    }
)
BUDGET = frozenset({"max_steps", "num_train_epochs", "eval_steps", "eval_strategy"})


def _no_from_yaml(value: object) -> object:
    """Undo YAML 1.1, which reads ``eval_strategy: no`` as false."""
    return "no" if value is False else value


EvalStrategy = Annotated[
    Literal["steps", "epoch", "no"],
    BeforeValidator(_no_from_yaml, json_schema_input_type=Literal["steps", "epoch", "no", False]),
]


MetricNames = Annotated[
    tuple[str, ...], BeforeValidator(split_at_commas, json_schema_input_type=str | list[str])
]


class ValidationOptions(BaseModel):
    """Training and validation hand in hand."""

    num_train_epochs: PositiveFloat = Field(
        3.0, description="Passes over the training set, unless max_steps is given."
    )
    max_steps: Literal[-1] | PositiveInt = Field(
        -1, description="Optimizer steps of a full trial; -1 goes by num_train_epochs."
    )

    # When.
    eval_strategy: EvalStrategy = Field(
        "steps",
        description="When to validate: steps (every eval_steps), epoch (at the end of each), or "
        "no: never, or only when a callback asks for it. The last step always validates. Without "
        "validation data it is no, unless given.",
    )
    eval_steps: Annotated[float, Field(gt=0, lt=1)] | PositiveInt = Field(
        0.2,
        description="Validate every so many steps; below 1 at every such fraction of the trial. "
        "The last step always validates. With eval_strategy no: report and checkpoint then.",
    )
    eval_on_start: bool = Field(
        False, description="Validate before the first step too; logged as step 0, not reported."
    )

    # On what.
    eval_max_samples: PositiveInt | None = Field(
        None,
        description="Validate on a random sample of this many examples. With eval_set rotating: "
        "examples of each validation.",
    )
    eval_set: Literal["fixed", "growing", "rotating"] = Field(
        "fixed",
        description="Examples of a validation: fixed (always all), growing (from eval_start_share "
        "at the first to all at the last), or rotating (each takes the next eval_max_samples).",
    )
    eval_start_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.25, description="Share of the validation set that a growing one begins with."
    )
    eval_first_pass_samples: PositiveInt | None = Field(
        None,
        description="Validate on this many examples first; a trial that is above max_loss on them "
        "ends as diverged without the rest.",
    )
    per_device_eval_batch_size: PositiveInt = Field(
        8, description="Examples in one forward pass of a validation, and in one generation."
    )
    eval_async: bool = Field(
        False,
        description="Validate a snapshot beside training, on a second device or on spare cores. "
        "Losses and metrics are the same.",
    )

    # Metrics that need generated answers.
    predict_with_generate: bool = Field(
        False,
        description="Generate answers in each validation, and measure them: those of eval_metrics, "
        "or exact_match, bleu and rouge.",
    )
    eval_metrics: MetricNames = Field(
        (),
        description="Metrics of generated answers: exact_match, bleu, rouge, distinct, repetition, "
        "length, classification, or your own as my_package.my_module:function.",
    )
    max_new_tokens: PositiveInt = Field(
        128,
        description="Longest generated answer, in tokens.",
    )
    bleu_tokenize: BleuTokenizer = Field(
        "13a", description="How sacrebleu splits answers into words for bleu; zh for Chinese."
    )
    eval_generate_max_samples: PositiveInt | None = Field(
        64, description="Generate answers to at most this many examples; null: to all."
    )

    # What is said of each step.
    logging_steps: Annotated[float, Field(gt=0, lt=1)] | PositiveInt = Field(
        10,
        description="Every so many steps one goes to the program's log; below 1 a fraction of the "
        "trial. metrics.jsonl has every step.",
    )
    grad_norm_jump: Annotated[float, Field(gt=1)] | None = Field(
        5.0,
        description="Name the rows of a step whose gradient norm is above this times the median "
        "of the last 20. null: never.",
    )

    @property
    def eval_pool_size(self) -> int | None:
        """How many examples validations are taken from; None: all that the data has."""
        return None if self.eval_set == "rotating" else self.eval_max_samples

    @property
    def generates(self) -> bool:
        """Whether validations generate answers."""
        return bool(self.answer_metrics)

    @property
    def answer_metrics(self) -> tuple[str, ...]:
        """The metrics of generated answers, by their names as options."""
        if self.eval_metrics or not self.predict_with_generate:
            return self.eval_metrics
        return ("exact_match", "bleu", "rouge")

    @field_validator("eval_metrics")
    @classmethod
    def _known_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        check_metric_names(names)
        return names

    @model_validator(mode="after")
    def _a_window_to_rotate(self) -> ValidationOptions:
        if self.eval_set == "rotating" and self.eval_max_samples is None:
            raise ValueError(
                "eval_set: rotating needs eval_max_samples, the examples of each validation, as in "
                "'eval_max_samples: 64'."
            )
        if self.eval_set == "growing" and self.eval_strategy == "no":
            raise ValueError(
                "eval_set: growing grows with the scheduled validations, and eval_strategy: no "
                "schedules none. Give eval_strategy: steps or epoch, or eval_set: rotating."
            )
        return self
