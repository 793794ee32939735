"""Options of the budget and of validation: how long a trial trains, when and on what it validates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, PositiveInt

SHARED = frozenset({"eval_max_samples", "per_device_eval_batch_size"})
BUDGET = frozenset({"max_steps", "num_train_epochs", "eval_steps"})


class ValidationOptions(BaseModel):
    """Training and validation hand in hand."""

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
    eval_max_samples: PositiveInt | None = Field(
        None, description="Validate on a random sample of this many examples."
    )
    per_device_eval_batch_size: PositiveInt = Field(
        8, description="Examples in one forward pass of a validation."
    )
