"""What can be said of one dataset among several, and how rows may be laid out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

DataFormat = Literal["auto", "alpaca", "messages", "sharegpt", "prompt_completion", "text"]
"""How a row of a data file is laid out. ``auto`` goes by the columns of the first row."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "role", "content"),
    "sharegpt": ("conversations", "from", "value", "system"),
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
"""The names by which each layout looks for its columns, and for the keys of a message."""

ROLES = ("system", "user", "assistant")


class DatasetEntry(BaseModel):
    """One of several datasets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, description="A file, a folder, or a dataset's hub name.")
    name: str | None = Field(None, description="Configuration (subset) of a hub dataset.")
    split: str | None = Field(None, description="Split of a hub dataset; train unless given.")
    data_format: DataFormat | None = Field(
        None, description="Layout of its rows, where it differs from the option data_format."
    )
    columns: Mapping[str, str] = Field(
        default_factory=dict,
        description="A layout's name of a column, or of a message's key -> its name in this data.",
    )
    roles: Mapping[str, Literal["system", "user", "assistant"]] = Field(
        default_factory=dict, description="A role's name in this data -> system, user, assistant."
    )
    weight: PositiveFloat | None = Field(
        None, description="Share of this dataset when mix_strategy interleaves."
    )
    num_samples: PositiveInt | None = Field(
        None, description="Random sample of this many rows; of fewer rows some are repeated."
    )
    max_samples: PositiveInt | None = Field(
        None, description="Random sample of at most this many rows."
    )

    @model_validator(mode="after")
    def _known_columns(self) -> DatasetEntry:
        layout = self.data_format
        layouts = COLUMNS if layout in (None, "auto") else {layout: COLUMNS[str(layout)]}
        known = {name for names in layouts.values() for name in names}
        unknown = sorted(self.columns.keys() - known)
        if unknown:
            raise ValueError(
                f"columns: {unknown[0]!r} is no column of the layout. Known: "
                f"{', '.join(sorted(known))}; each with its name in the data."
            )
        return self
