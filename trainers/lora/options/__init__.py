"""The options of the LoRA trainer, by the names that transformers, PEFT and TRL give them.

One flat model, put together from groups that are a file each; what concerns several groups is here.
Knows no torch: what can only be checked with the model or the data at hand is checked there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from trainers.lora.aliases import ALIASES, IGNORED, translate_values
from trainers.lora.options import data, method, model, stopping, validation
from trainers.lora.options.answer_metrics import reported_names
from trainers.lora.options.data import VALIDATION_DATA, DataOptions
from trainers.lora.options.dataset_entry import DataFormat
from trainers.lora.options.method import ALL_LINEAR, MethodOptions
from trainers.lora.options.model import ModelOptions
from trainers.lora.options.optimization import OptimizationOptions
from trainers.lora.options.schedule import ScheduleOptions
from trainers.lora.options.stopping import StoppingOptions
from trainers.lora.options.validation import ValidationOptions
from trainers.protocol import TrainerOptions

__all__ = ["ALL_LINEAR", "DataFormat", "LoraOptions"]

_OF_A_NAMED_SET = re.compile(r"eval_.+_(loss|token_accuracy)")


class LoraOptions(
    StoppingOptions,
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
        model.SHARED | data.SHARED | method.SHARED | validation.SHARED | stopping.SHARED
    )
    budget: ClassVar[frozenset[str]] = validation.BUDGET
    paths: ClassVar[frozenset[str]] = model.PATHS | data.PATHS
    default_paths: ClassVar[Mapping[str, str]] = data.DEFAULT_PATHS
    aliases: ClassVar[Mapping[str, str]] = ALIASES
    ignored: ClassVar[Mapping[str, str]] = IGNORED
    """Other tools' options that a study decides itself: ``translate`` drops them. Name -> why."""

    @property
    def has_validation_data(self) -> bool:
        """Whether the options name examples to validate on."""
        return bool(self.validation_given)

    @property
    def validates(self) -> bool:
        """Whether a trial can validate at all: by its schedule, or because a callback asks."""
        return self.eval_strategy != "no" or (bool(self.callbacks) and self.has_validation_data)

    @property
    def is_scheduled(self) -> bool:
        """Whether the options say after which steps a trial reports, and not a callback."""
        return self.eval_strategy != "no" or not self.validates

    @property
    def best_metric(self) -> str:
        """The metric that tells the best validation, by the name that reports carry."""
        name = self.metric_for_best_model
        if name is None:
            return "eval_loss" if self.validates else "train_loss"
        known = self.metric_names() or frozenset()
        # transformers begins all names with eval_, and lets a user leave that out.
        likely = (name, f"eval_{name}", name.removeprefix("eval_"))
        return next((candidate for candidate in likely if candidate in known), name)

    def num_validations(self) -> int | None:
        """Return the validations of a full trial; None if the data or a callback decides."""
        if not self.is_scheduled:
            return None
        if self.eval_strategy == "epoch":
            return None if self.max_steps > 0 else math.ceil(self.num_train_epochs)
        if self.eval_steps < 1:
            return math.ceil(round(1 / self.eval_steps, 6))
        return -(-self.max_steps // int(self.eval_steps)) if self.max_steps > 0 else None

    def metric_names(self) -> frozenset[str] | None:
        names = {"epoch", "train_loss"}
        if not self.validates:
            return frozenset(names)
        names |= {"eval_loss", "perplexity", "eval_token_accuracy", "eval_runtime"}
        if isinstance(self.validation_file, Mapping) and len(self.validation_file) > 1:
            sets = self.validation_file
            names |= {f"eval_{name}_{what}" for name in sets for what in ("loss", "token_accuracy")}
        if self.eval_first_pass_samples is not None:
            names.add("eval_first_pass_loss")
        of_answers = reported_names(self.answer_metrics)
        return None if of_answers is None else frozenset(names | of_answers)

    def pruning_problem(self) -> str | None:
        if not self.validates:
            return (
                "nothing is validated, so there is nothing to compare: give val_size or "
                "validation_file (and no 'do_eval: false'), or set 'pruner: {type: none}'."
            )
        if not self.is_scheduled:
            return (
                "with eval_strategy: no the callbacks decide when a trial validates, so trials "
                "cannot be compared: set 'pruner: {type: none}', or eval_strategy: steps."
            )
        return None

    def sharing_problem(self) -> str | None:
        return self.needs_own_base or self.packing_problem

    @classmethod
    def for_metric(
        cls, given: Mapping[str, object], metric: str, direction: Literal["minimize", "maximize"]
    ) -> dict[str, object]:
        completed = dict(given)
        names = {cls.aliases.get(name, name): value for name, value in given.items()}
        if names.setdefault("metric_for_best_model", metric) != metric:
            return completed  # the study's direction says nothing of another metric
        completed.setdefault("metric_for_best_model", metric)
        if "greater_is_better" not in names:
            completed["greater_is_better"] = direction == "maximize"
        return completed

    @model_validator(mode="before")
    @classmethod
    def _no_validation_without_data(cls, given: object) -> object:
        """As in transformers: nothing is validated where nothing is said of validation."""
        if not isinstance(given, dict) or "eval_strategy" in given:
            return given
        has_data = any(given.get(name) is not None for name in VALIDATION_DATA)
        return given if has_data else {**given, "eval_strategy": "no"}

    @model_validator(mode="after")
    def _one_validation_set(self) -> LoraOptions:
        if len(self.validation_given) > 1:
            raise ValueError(
                f"give one of {' and '.join(self.validation_given)}: trials are compared by their "
                f"loss on one validation set, as in 'val_size: 0.1'."
            )
        if self.eval_strategy != "no" and not self.has_validation_data:
            raise ValueError(
                f"eval_strategy: {self.eval_strategy} needs examples to validate on: give val_size "
                f"or validation_file, as in 'val_size: 0.1'; or 'do_eval: false', to train without."
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

    @model_validator(mode="after")
    def _validation_where_it_is_needed(self) -> LoraOptions:
        needing = {
            "early_stopping_patience": self.early_stopping_patience is not None,
            "eval_target": self.eval_target is not None,
            "load_best_model_at_end": self.load_best_model_at_end,
            "eval_on_start": self.eval_on_start,
            "eval_first_pass_samples": self.eval_first_pass_samples is not None,
            "predict_with_generate": self.predict_with_generate,
            "eval_metrics": bool(self.eval_metrics),
            f"metric_for_best_model: {self.metric_for_best_model}": (
                self.best_metric != "train_loss"
            ),
            f"lr_scheduler_type: {self.lr_scheduler_type}": self.is_scheduled_by_validation,
        }
        problems = [name for name, is_given in needing.items() if is_given]
        if problems and not self.validates:
            raise ValueError(
                f"{', '.join(problems)}: cannot work with do_eval: false (eval_strategy: no), as "
                f"nothing is validated. Leave it out, or validate: give val_size or "
                f"validation_file, and no do_eval: false."
            )
        return self

    @model_validator(mode="after")
    def _validation_beside_training(self) -> LoraOptions:
        if not self.eval_async:
            return self
        at_its_step = "at its step, and a validation beside training ends later"
        reasons = {
            "callbacks": (
                bool(self.callbacks),
                f"callbacks are told of a validation {at_its_step}",
            ),
            "eval_strategy: no": (self.eval_strategy == "no", "no validation is scheduled"),
            f"lr_scheduler_type: {self.lr_scheduler_type}": (
                self.is_scheduled_by_validation,
                f"the learning rate follows from a validation {at_its_step}",
            ),
            "trials that change the base model": (
                self.needs_own_base is not None,
                f"{self.needs_own_base}, and the copy beside training shares these",
            ),
        }
        for name, (is_given, why) in reasons.items():
            if is_given:
                raise ValueError(
                    f"eval_async: true cannot work with {name}: {why}. Leave one of the two out."
                )
        return self

    @model_validator(mode="after")
    def _a_metric_that_is_reported(self) -> LoraOptions:
        known = self.metric_names()
        if known is None or self.best_metric in known or _OF_A_NAMED_SET.match(self.best_metric):
            return self
        raise ValueError(
            f"metric_for_best_model: {self.best_metric!r} is not reported with these options. "
            f"Reported: {', '.join(sorted(known))}. Metrics of generated answers need eval_metrics."
        )

    @classmethod
    def translate(cls, given: Mapping[str, object]) -> dict[str, object]:
        translated = super().translate(translate_values(given))
        # Axolotl's files name options that they leave empty.
        names = cls.model_fields
        return {k: value for k, value in translated.items() if k in names or value is not None}
