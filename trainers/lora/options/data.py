"""Options of the data: where it is, how rows are laid out, what is kept of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, PositiveInt

DataFormat = Literal["auto", "alpaca", "messages", "sharegpt", "prompt_completion", "text"]
"""How a row of a data file is laid out. ``auto`` goes by the columns of the first row."""

SHARED = frozenset(
    {
        "train_file",
        "validation_file",
        "val_size",
        "data_format",
        "data_seed",
        "default_system",
        "max_length",
        "max_train_samples",
    }
)
PATHS = frozenset({"train_file", "validation_file", "dataset_dir"})


class DataOptions(BaseModel):
    """The training and the validation set."""

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
