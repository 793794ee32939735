"""Makes trials: at their beginning, or as they were saved, with their weights on the base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainers.lora.callbacks.trial_callbacks import TrialCallbacks
from trainers.lora.checkpoint import check_resumable, load_trial
from trainers.lora.data.dataset import Dataset
from trainers.lora.data.order import DataOrder
from trainers.lora.learning_rate import LearningRate
from trainers.lora.model.base_model import BaseModel
from trainers.lora.model.weights import Parameters, WeightPool
from trainers.lora.options import LoraOptions
from trainers.lora.schedule import Schedule
from trainers.lora.trial import Trial
from trainers.protocol import ADAPTER_FOLDER

DIVERGED_LOSS_FACTOR = 2.0
"""By default a trial has diverged when its loss is above this times that of a uniform guess."""


class TrialMaker:
    """Makes trials on one base model and one dataset."""

    def __init__(
        self,
        base: BaseModel,
        dataset: Dataset,
        weights: WeightPool,
        tokenizer: Any,
        notes: Sequence[str],
    ) -> None:
        """Take what all trials share; ``notes`` are said with each one's first report."""
        self._base = base
        self._dataset = dataset
        self._weights = weights
        self._tokenizer = tokenizer
        self._notes = tuple(notes)

    def schedule(self, options: LoraOptions) -> Schedule:
        """Return how long a trial trains, and when it validates."""
        return Schedule(options, self._order(options).steps_per_epoch)

    def make(self, key: int, options: LoraOptions, resume_from: Path | None) -> Trial:
        """Return a trial whose weights are in the pool; leave none there if it cannot be made.

        Raises:
            ValueError: The options do not suit the model, or the saved folder is of other options.
        """
        saved = None
        if resume_from is not None:
            check_resumable(resume_from, options, self._dataset.digest)
            saved = resume_from / ADAPTER_FOLDER
        order = self._order(options)
        schedule = Schedule(options, order.steps_per_epoch)
        rate = LearningRate(options, schedule.num_steps)
        parameters = self._weights.add(key, options, saved)
        try:
            callbacks = self._callbacks(options, schedule, parameters)
            trial = Trial(
                key=key,
                options=options,
                order=order,
                schedule=schedule,
                learning_rate=rate,
                parameters=parameters,
                max_loss=options.max_loss or DIVERGED_LOSS_FACTOR * self._base.uniform_loss,
                scaler=self._make_scaler(),
                callbacks=callbacks,
                where=self._dataset.where,
                notes=[*self._notes, *(callbacks.notes if callbacks is not None else ())],
            )
            if resume_from is not None:
                load_trial(trial, resume_from)
        except Exception:
            self._weights.remove(key)
            raise
        return trial

    def _callbacks(
        self, options: LoraOptions, schedule: Schedule, parameters: Parameters
    ) -> TrialCallbacks | None:
        if not options.callbacks:
            return None
        return TrialCallbacks(
            options.callbacks,
            options,
            schedule.num_steps,
            schedule.steps_per_epoch,
            parameters,
            self._base.model.config,
            self._base.device,
            self._tokenizer,
        )

    def _order(self, options: LoraOptions) -> DataOrder:
        return DataOrder(options, len(self._dataset.train), self._dataset.train_lengths)

    def _make_scaler(self) -> torch.amp.GradScaler | None:
        if self._base.dtype != torch.float16:
            return None
        return torch.amp.GradScaler(self._base.device.type)
