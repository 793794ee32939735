"""The trainer itself: one base model, one dataset, and the trials on it.

Imports torch; ``trainers.lora.LoraTrainer`` is the way in that does not.
"""

from __future__ import annotations

from pathlib import Path

import torch

from trainers.lora.adapters import AdapterPool
from trainers.lora.base_model import load_base_model, load_tokenizer
from trainers.lora.checkpoint import check_resumable, load_adapter, load_trial, save_trial
from trainers.lora.dataset import load_dataset
from trainers.lora.encoding import Encoder
from trainers.lora.learning_rate import LearningRate
from trainers.lora.options import LoraOptions
from trainers.lora.order import DataOrder
from trainers.lora.packing import check_keeps_apart
from trainers.lora.passes import Passes, PassFailed, StepLoss, describe
from trainers.lora.schedule import Schedule
from trainers.lora.trial import Trial
from trainers.protocol import Plan, Report

DIVERGED_LOSS_FACTOR = 2.0
"""By default a trial has diverged when its loss is above this times that of a uniform guess."""

_VISITOR = -1
"""Key of an adapter that comes to be validated only; trials' numbers start at 0."""


class Engine:
    """Implements ``trainers.protocol.Trainer`` on checked options."""

    def __init__(self, fixed: LoraOptions, device: str) -> None:
        # Data first: its mistakes are the most frequent, and a large model takes minutes.
        tokenizer = load_tokenizer(fixed)
        encoder = Encoder.of(fixed, tokenizer)
        self._dataset = load_dataset(fixed, encoder, _pad_token_id(tokenizer))
        self._base = load_base_model(fixed, device)
        if fixed.packing:
            check_keeps_apart(self._base.model, self._base.device)
        self._fixed = fixed
        self._adapters = AdapterPool(self._base)
        self._passes = Passes(self._base, self._adapters, self._dataset)
        self._validation_batches = self._dataset.validation_batches(
            fixed.per_device_eval_batch_size
        )
        self._trials: dict[int, Trial] = {}
        self._resumed_at_end: set[int] = set()

    def plan(self, options: LoraOptions) -> Plan:
        self._check_shared(options)
        schedule = Schedule(options, self._order(options).steps_per_epoch)
        shapes = self._base.targets(options).values()
        return Plan(
            num_train_samples=len(self._dataset.train),
            num_eval_samples=len(self._dataset.validation),
            num_steps=schedule.num_steps,
            num_validations=len(schedule.validation_steps),
            num_trainable_parameters=options.lora_r * sum(map(sum, shapes)),
            notes=self._base.notes + self._dataset.notes,
        )

    def add(self, key: int, options: LoraOptions, resume_from: Path | None) -> None:
        if key in self._trials:
            raise ValueError(f"trial {key} is on this trainer already. Remove it first.")
        self._check_shared(options)
        if resume_from is not None:
            check_resumable(resume_from, options, self._dataset.digest)
        order = self._order(options)
        schedule = Schedule(options, order.steps_per_epoch)
        rate = LearningRate(options, schedule.num_steps)
        parameters = self._adapters.add(key, options)
        max_loss = options.max_loss or DIVERGED_LOSS_FACTOR * self._base.uniform_loss
        scaler = self._make_scaler()
        trial = Trial(key, options, order, schedule, rate, parameters, max_loss, scaler)
        if resume_from is not None:
            try:
                load_trial(trial, resume_from)
            except ValueError:
                self._adapters.remove(key)
                raise
        self._trials[key] = trial
        if trial.progress.end is not None:
            self._resumed_at_end.add(key)

    def advance(self) -> list[Report]:
        reports = [self._trials[key].repeat_end() for key in sorted(self._resumed_at_end)]
        self._resumed_at_end.clear()
        active = [trial for trial in self._trials.values() if trial.progress.end is None]
        outcomes = self._passes.backward(active)
        for trial, outcome in zip(active, outcomes, strict=True):
            report = self._finish_step(trial, outcome)
            if report is not None:
                reports.append(report)
        return reports

    def step(self, key: int) -> int:
        return self._get(key).progress.step

    def remove(self, key: int) -> None:
        self._get(key)
        del self._trials[key]
        self._resumed_at_end.discard(key)
        self._adapters.remove(key)

    def save(self, key: int, folder: Path) -> None:
        trial = self._get(key)
        config = self._adapters.config(trial.options)
        save_trial(trial, config, self._dataset.digest, folder)

    def evaluate(self, options: LoraOptions, adapter: Path | None) -> dict[str, float]:
        self.add(_VISITOR, options, None)
        try:
            visitor = self._trials[_VISITOR]
            if adapter is not None:
                load_adapter(visitor, adapter)
            return self._passes.validate(visitor, self._validation_batches)
        finally:
            self.remove(_VISITOR)

    def _finish_step(self, trial: Trial, outcome: StepLoss | PassFailed) -> Report | None:
        """Update a trial's weights and validate if it is due; return the report this makes."""
        if isinstance(outcome, PassFailed):
            return trial.fail(outcome.message)
        try:
            diverged = trial.update(outcome.loss, outcome.num_tokens, outcome.seconds)
            if diverged is not None or not trial.is_validation_due:
                return diverged
            return trial.validated(self._passes.validate(trial, self._validation_batches))
        except Exception as error:  # becomes this trial's report; the others go on
            return trial.fail(describe(error))

    def _order(self, options: LoraOptions) -> DataOrder:
        return DataOrder(options, len(self._dataset.train), self._dataset.train_lengths)

    def _make_scaler(self) -> torch.amp.GradScaler | None:
        if self._base.dtype != torch.float16:
            return None
        return torch.amp.GradScaler(self._base.device.type)

    def _check_shared(self, options: LoraOptions) -> None:
        for name in sorted(LoraOptions.shared):
            here, given = getattr(self._fixed, name), getattr(options, name)
            if here != given:
                raise ValueError(
                    f"{name}: {given!r} differs from {here!r}, with which this trainer was made. "
                    f"Trials on one trainer share it."
                )

    def _get(self, key: int) -> Trial:
        if key not in self._trials:
            present = ", ".join(map(str, self._trials)) or "none"
            raise KeyError(f"trial {key} is not on this trainer. Present: {present}.")
        return self._trials[key]


def _pad_token_id(tokenizer: object) -> int:
    """Return any id: padding is masked out and never a target."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            return value
    return 0
