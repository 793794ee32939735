"""The losses of transformers' own Trainer with PEFT, from the same start on the same batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.utils.data import Dataset, SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from trainers.lora import LoraTrainer

NUM_STEPS = 20
WIDTH = 64

Options = dict[str, object]

OPTIONS: Options = {
    "lora_r": 4,
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 3,
    # 20 rows: five whole steps an epoch, so that the reference's flat order has the same batches.
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": NUM_STEPS,
    "eval_steps": NUM_STEPS,
}


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Every row of every step, in the trial's order."""

    def __init__(self, examples: list[Any]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        example = self._examples[index]
        pad = WIDTH - len(example.input_ids)
        return {
            "input_ids": torch.nn.functional.pad(example.input_ids.long(), (0, pad)),
            "labels": torch.nn.functional.pad(example.labels.long(), (0, pad), value=-100),
            "attention_mask": (torch.arange(WIDTH) < len(example.input_ids)).long(),
        }


class InOrder(Trainer):
    def _get_train_sampler(self, _dataset: object = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def reference_of(rows: Rows, model_folder: Path, folder: Path) -> list[dict[str, float]]:
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    trainer = InOrder(
        PeftModel.from_pretrained(base, str(folder / "start" / "adapter"), is_trainable=True),
        TrainingArguments(
            output_dir=str(folder / "reference"),
            max_steps=NUM_STEPS,
            learning_rate=3e-3,
            weight_decay=0.1,
            max_grad_norm=0.5,
            lr_scheduler_type="cosine",
            warmup_steps=3,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=rows,
    )
    trainer.train()
    return [line for line in trainer.state.log_history if "grad_norm" in line]


def test_twenty_steps_lose_what_transformers_loses(
    fixed: Options, tmp_path: Path, model_folder: Path
) -> None:
    options = {**fixed, **OPTIONS}
    trainer = LoraTrainer(options, "cpu")
    trainer.add(0, options)
    trainer.save(0, tmp_path / "start")
    order = trainer._engine._trials[0].order
    examples = [
        trainer._engine._dataset.train[row]
        for step in range(1, NUM_STEPS + 1)
        for rows in order.micro_batches(step)
        for row in rows
    ]
    expected = reference_of(Rows(examples), model_folder, tmp_path)
    reports = [report for _ in range(2 * NUM_STEPS) for report in trainer.advance()]
    lines = [line for report in reports for line in report.step_lines]
    assert len(lines) == len(expected) == NUM_STEPS
    for name, tolerance in (("loss", 1e-4), ("grad_norm", 1e-4), ("learning_rate", 1e-9)):
        ours = [line[name] for line in lines]
        assert ours == pytest.approx([line[name] for line in expected], rel=tolerance, abs=0)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.2, "nothing was learned"
