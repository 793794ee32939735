"""The peer: whole training steps of transformers' Trainer with PEFT, timed by a callback.

Uses nothing of ``trainers``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

Row = dict[str, Tensor]


class TrainerSteps:
    """A Trainer that trains on the same rows whenever it is asked."""

    def __init__(self, model: str, rows: Sequence[Row], rank: int, dtype: str) -> None:
        """Make model and adapter.

        Args:
            model: Folder of the base model.
            rows: Of each step: ``input_ids``, ``attention_mask`` and ``labels``, shape (tokens,).
            rank: Of the adapter.
            dtype: Of the base model; below float32 the Trainer computes in autocast.
        """
        base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        base.config.use_cache = False
        lora = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self._model = get_peft_model(base, lora)
        self._rows = rows
        self._is_half = dtype == "bfloat16"

    def run(self, num_steps: int) -> float:
        """Return the seconds of so many whole steps, after one that does not count."""
        watch = _Watch()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                use_cpu=True,
                bf16=self._is_half,
                max_steps=num_steps + 1,
                per_device_train_batch_size=len(self._rows),
                optim="adamw_torch_fused",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            trainer = Trainer(
                model=self._model,
                args=arguments,
                train_dataset=list(self._rows) * (num_steps + 1),
                data_collator=_stack,
                callbacks=[watch],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return sum(watch.seconds[1:])


class _Watch(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def _stack(rows: Sequence[Row]) -> Row:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
