"""The options of the LoRA trainer, by the names that transformers, PEFT and TRL give them.

One flat model, put together from groups that are a file each. Knows no torch: what can only be
checked with the model or the data at hand is checked there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from pydantic import model_validator

from trainers.lora.aliases import ALIASES, IGNORED, translate_values
from trainers.lora.options import data, method, model, validation
from trainers.lora.options.data import DataFormat, DataOptions
from trainers.lora.options.method import ALL_LINEAR, MethodOptions
from trainers.lora.options.model import ModelOptions
from trainers.lora.options.optimization import OptimizationOptions
from trainers.lora.options.schedule import ScheduleOptions
from trainers.lora.options.validation import ValidationOptions
from trainers.protocol import TrainerOptions

__all__ = ["ALL_LINEAR", "DataFormat", "LoraOptions"]


class LoraOptions(
    ValidationOptions,
    OptimizationOptions,
    ScheduleOptions,
    MethodOptions,
    DataOptions,
    ModelOptions,
    TrainerOptions,
):
    """Everything that one trial needs to know. Fields are read in the order of the groups."""

    shared: ClassVar[frozenset[str]] = (
        model.SHARED | data.SHARED | method.SHARED | validation.SHARED
    )
    budget: ClassVar[frozenset[str]] = validation.BUDGET
    paths: ClassVar[frozenset[str]] = model.PATHS | data.PATHS
    aliases: ClassVar[Mapping[str, str]] = ALIASES
    ignored: ClassVar[Mapping[str, str]] = IGNORED
    """Other tools' options that a study decides itself: ``translate`` drops them. Name -> why."""

    def num_validations(self) -> int | None:
        """Return the validations of a full trial; None if the data decides its length."""
        if self.eval_steps < 1:
            return math.ceil(round(1 / self.eval_steps, 6))
        return -(-self.max_steps // int(self.eval_steps)) if self.max_steps > 0 else None

    @model_validator(mode="after")
    def _one_validation_set(self) -> LoraOptions:
        if (self.validation_file is None) == (self.val_size is None):
            given = "neither" if self.val_size is None else "both"
            raise ValueError(
                f"give validation_file or val_size, got {given}: trials are compared by their "
                f"loss on one validation set, as in 'val_size: 0.1'."
            )
        return self

    @model_validator(mode="after")
    def _method_suits_model(self) -> LoraOptions:
        if self.quantization_bit is not None and self.needs_own_base is not None:
            raise ValueError(
                f"{self.needs_own_base}, which cannot be done with quantization_bit: "
                f"{self.quantization_bit}. Leave out quantization_bit, or train another way."
            )
        if self.quantization_bit == 8 and self.use_dora:
            raise ValueError(
                "use_dora: true cannot be done with quantization_bit: 8: PEFT cannot read the "
                "magnitudes of 8-bit layers without spoiling them. Give quantization_bit: 4."
            )
        if self.loraplus_lr_ratio is not None and self.finetuning_type == "full":
            raise ValueError(
                f"loraplus_lr_ratio: {self.loraplus_lr_ratio} is a rate of adapters, and "
                f"finetuning_type: full trains none. Leave it out."
            )
        return self

    @classmethod
    def translate(cls, given: Mapping[str, object]) -> dict[str, object]:
        return super().translate(translate_values(given))
