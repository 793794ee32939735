"""Options of the data: where it is, how rows are laid out, what is kept of it, in which order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
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

from trainers.lora.data.templates import TEMPLATES
from trainers.lora.options.dataset_entry import DataFormat, DatasetEntry
from trainers.lora.options.lists import split_at_commas

SHARED = frozenset(
    {
        "train_file",
        "dataset_name",
        "dataset_config_name",
        "dataset_train_split",
        "dataset_eval_split",
        "datasets",
        "mix_strategy",
        "interleave_probs",
        "validation_file",
        "val_size",
        "data_format",
        "data_seed",
        "chat_template",
        "default_system",
        "train_on_prompt",
        "mask_history",
        "max_length",
        "max_train_samples",
        "packing",
        "on_bad_rows",
    }
)
VALIDATION_DATA = ("validation_file", "val_size", "dataset_eval_split")
"""Options that say what to validate on; of several, only one may be given."""

PATHS = frozenset(
    {
        "train_file",
        "dataset_name",
        "datasets",
        "validation_file",
        "chat_template",
        "dataset_prepared_path",
        # Names of other tools, translated to one of these.
        "dataset_dir",
        "eval_dataset",
        "test_datasets",
    }
)
DEFAULT_PATHS = {"dataset_dir": "data"}
"""LLaMA-Factory's; dropped again where no dataset is named."""


Paths = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
EntryOrPath = DatasetEntry | Annotated[str, Field(min_length=1)]
Entries = Annotated[tuple[EntryOrPath, ...], Field(min_length=1)]
Probabilities = Annotated[
    Annotated[tuple[PositiveFloat, ...], Field(min_length=2)],
    BeforeValidator(split_at_commas, json_schema_input_type=str | list[float]),
]


class DataOptions(BaseModel):
    """The training and the validation set."""

    # Where the rows are.
    train_file: Annotated[str, Field(min_length=1)] | Paths | None = Field(
        None,
        description="Training examples: a JSON, JSONL, CSV, Parquet or text file, a folder of "
        "them, or a list of files and folders.",
    )
    dataset_name: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="A Hugging Face dataset by its name on the hub, instead of train_file."
    )
    dataset_config_name: str | None = Field(
        None, description="Configuration (subset) of dataset_name."
    )
    dataset_train_split: str = Field("train", description="Split of dataset_name to train on.")
    dataset_eval_split: str | None = Field(
        None, description="Split of dataset_name to validate on."
    )
    datasets: Annotated[tuple[DatasetEntry, ...], Field(min_length=1)] | None = Field(
        None, description="Several datasets, each with its path, instead of train_file."
    )
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = (
        Field(
            "concat",
            description="How datasets become one: one after the other, or in turn by weight until the "
            "first is used up (under), until the last is (over: others repeat), or each row once.",
        )
    )
    interleave_probs: Probabilities | None = Field(
        None, description="Share of each of datasets when interleaving; or give each its weight."
    )
    validation_file: (
        Annotated[str, Field(min_length=1)] | Entries | Mapping[str, EntryOrPath | Entries] | None
    ) = Field(
        None,
        description="Validation examples: a file, a folder, a list of them, or several validation "
        "sets as a mapping of names to these.",
    )
    val_size: Annotated[float, Field(gt=0, lt=1)] | PositiveInt | None = Field(
        None,
        description="Part of the training data to validate on: below 1 a fraction, else a number "
        "of examples. Give either this or validation_file.",
    )

    # What is made of a row.
    data_format: DataFormat = Field(
        "auto", description="How rows are laid out; auto goes by the columns of the first row."
    )
    on_bad_rows: Literal["error", "skip"] = Field(
        "error", description="Whether a row that cannot be used ends all, or is left out and said."
    )
    chat_template: str | None = Field(
        None,
        description="How a conversation is written: null as the model does, a template's name "
        f"({', '.join(TEMPLATES)}), or a .jinja file.",
    )
    default_system: str | None = Field(
        None, description="System message for conversations that have none."
    )
    train_on_prompt: bool = Field(
        False, description="Take the loss on all tokens instead of on the answers only."
    )
    mask_history: bool = Field(
        False, description="Take the loss on the last answer of a conversation only."
    )
    max_length: Annotated[int, Field(ge=2)] = Field(
        512, description="Tokens of an example; what is beyond is cut off."
    )

    # What is kept, and in which order.
    data_seed: int = Field(
        42, description="Seed of the validation split and of the samples that the limits keep."
    )
    max_train_samples: PositiveInt | None = Field(
        None, description="Train on a random sample of this many examples."
    )
    packing: bool = Field(
        False,
        description="Put several training examples in a row of up to max_length tokens; they do "
        "not see each other.",
    )
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = Field(
        "random",
        description="Order of the training examples: random, as in the file, or random with those "
        "of like length together.",
    )
    dataset_prepared_path: str | None = Field(
        None,
        description="Folder in which tokenised data is kept for other trials and runs. null: "
        "$HPO_CACHE/tokenized, or ~/.cache/hpo/tokenized.",
    )

    @property
    def validation_given(self) -> tuple[str, ...]:
        """Those of ``VALIDATION_DATA`` that are given."""
        return tuple(name for name in VALIDATION_DATA if getattr(self, name) is not None)

    @field_validator("chat_template")
    @classmethod
    def _known_template(cls, value: str | None) -> str | None:
        if value is None or value in TEMPLATES or value.endswith((".jinja", ".jinja2", ".j2")):
            return value
        path = Path(value)
        if path.name in TEMPLATES and path.is_absolute():  # a folder beside the config has the name
            return path.name
        raise ValueError(
            f"{value!r} is no template. Known: {', '.join(TEMPLATES)}; or give a .jinja file, or "
            f"null for the model's own"
        )

    @field_validator("validation_file")
    @classmethod
    def _plain_names(cls, value: object) -> object:
        if isinstance(value, Mapping):
            if not value:
                raise ValueError("names no validation set. Give at least one, as in {val: v.jsonl}")
            for name in value:
                if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
                    raise ValueError(
                        f"{name!r} cannot name a validation set: its metric is eval_<name>_loss. "
                        f"Use letters, digits, '_', '-' and '.'"
                    )
        return value

    @model_validator(mode="after")
    def _one_training_set(self) -> DataOptions:
        names = ("train_file", "dataset_name", "datasets")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(names)}, got {' and '.join(given) or 'none'}: as "
                f"in 'train_file: data/train.jsonl'"
            )
        if self.dataset_name is None:
            for name, default in (
                ("dataset_config_name", None),
                ("dataset_train_split", "train"),
                ("dataset_eval_split", None),
            ):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name}: {getattr(self, name)!r} says which part of dataset_name, which "
                        f"is not given. Give dataset_name, or leave {name} out"
                    )
        return self

    @model_validator(mode="after")
    def _mix_of_datasets(self) -> DataOptions:
        entries = self.datasets or ()
        weights = [entry.weight for entry in entries if entry.weight is not None]
        if self.mix_strategy == "concat":
            if weights or self.interleave_probs:
                raise ValueError(
                    "weights mix datasets only when they are interleaved. Give mix_strategy: "
                    "interleave_under (or interleave_over), or leave the weights out"
                )
            return self
        if len(entries) < 2:
            raise ValueError(
                f"mix_strategy: {self.mix_strategy!r} needs two 'datasets:' or more, got "
                f"{len(entries)}. List them as in 'datasets: [{{path: a.jsonl}}, {{path: b.jsonl}}]'"
            )
        if weights and self.interleave_probs:
            raise ValueError("give interleave_probs or each dataset's weight, got both")
        if weights and len(weights) != len(entries):
            raise ValueError(
                f"{len(weights)} of {len(entries)} datasets have a weight. Give all of them one"
            )
        if self.interleave_probs and len(self.interleave_probs) != len(entries):
            raise ValueError(
                f"interleave_probs has {len(self.interleave_probs)} numbers for {len(entries)} "
                f"datasets. Give one for each"
            )
        return self

    @model_validator(mode="after")
    def _no_contradiction(self) -> DataOptions:
        if self.train_on_prompt and self.mask_history:
            raise ValueError(
                "train_on_prompt learns all tokens and mask_history only the last answer. Give "
                "only one of them"
            )
        if self.packing and self.train_sampling_strategy == "group_by_length":
            raise ValueError(
                "packing fills all rows to like length, so train_sampling_strategy: "
                "'group_by_length' has nothing to group. Leave one of them out"
            )
        return self
