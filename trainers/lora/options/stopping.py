"""Options of how a trial ends, other than by its last step, and of callbacks, which may ask for it."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    JsonValue,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from trainers.lora.options.answer_metrics import greater_is_better

SHARED = frozenset({"callbacks"})


def _check_path(value: str | dict[str, JsonValue]) -> str | dict[str, JsonValue]:
    path = value if isinstance(value, str) else value.get("path")
    module, _, name = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not (module and name):
        raise ValueError(
            f"{value!r} names no callback: give my_package.my_module:MyCallback, or a mapping with "
            f"it as 'path' and the arguments of its constructor beside it."
        )
    return value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | dict) else value


Callback = Annotated[str | dict[str, JsonValue], AfterValidator(_check_path)]
Callbacks = Annotated[
    tuple[Callback, ...],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str | dict[str, JsonValue]]),
]


class StoppingOptions(BaseModel):
    """Early ends, the best weights, and callbacks."""

    metric_for_best_model: str | None = Field(
        None,
        min_length=1,
        description="The metric that early stopping, eval_target and load_best_model_at_end go by. "
        "null: eval_loss, or train_loss where nothing is validated.",
    )
    greater_is_better: bool | None = Field(
        None,
        description="Whether more of metric_for_best_model is better. null: by its name; less of a "
        "loss or a perplexity, more of an accuracy.",
    )
    early_stopping_patience: PositiveInt | None = Field(
        None,
        description="End a trial after this many validations without a better "
        "metric_for_best_model.",
    )
    early_stopping_threshold: NonNegativeFloat = Field(
        0.0, description="How much better metric_for_best_model must be to count as better."
    )
    load_best_model_at_end: bool = Field(
        False,
        description="Give a trial the weights of its best validation at its end. A study keeps "
        "that validation's checkpoint anyway.",
    )
    eval_target: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="End a trial as soon as metric_for_best_model is this good."
    )
    max_loss: PositiveFloat | None = Field(
        None,
        description="A trial whose training or validation loss is above this ends as diverged. "
        "null: twice the loss of a uniform guess, 2 ln(vocabulary).",
    )
    max_train_minutes: PositiveFloat | None = Field(
        None,
        description="End a trial, by a last validation, when its steps and validations have taken "
        "this long.",
    )
    callbacks: Callbacks = Field(
        (),
        description="transformers' TrainerCallback classes, as my_package.my_module:MyCallback, or "
        "as a mapping with that as path and the constructor's arguments. They may ask for "
        "validations and for the end; what is saved is every validation that is reported.",
    )

    def is_better(self, value: float, best: float, metric: str, threshold: float) -> bool:
        """Return whether a value of the metric is better than the best by more than a threshold."""
        gain = value - best if self.is_greater_better(metric) else best - value
        return gain > threshold

    def is_greater_better(self, metric: str) -> bool:
        """Return whether more of a metric is better, as said or by its name."""
        if self.greater_is_better is not None:
            return self.greater_is_better
        return greater_is_better(metric)
