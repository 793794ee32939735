"""Eight trials that differ in everything that trials of one pack may differ in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Guest:
    """A trial that comes and goes.

    Attributes:
        options: Those of its own.
        joins: At this round of the pack, from 0.
        leaves: After so many reports, as one that is pruned does; None: at its end.
    """

    options: Mapping[str, object]
    joins: int = 0
    leaves: int | None = None


GUESTS: tuple[Guest, ...] = (
    Guest({"seed": 1, "lora_r": 8, "per_device_train_batch_size": 1, "max_steps": 6}),
    Guest(
        {
            "seed": 2,
            "lora_r": 16,
            "lora_alpha": 16,
            "use_rslora": True,
            "target_modules": ["q_proj", "v_proj"],
            "per_device_train_batch_size": 2,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 2,
            "max_steps": 5,
        }
    ),
    Guest(
        {
            "seed": 3,
            "lora_r": 4,
            "lora_dropout": 0.1,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "optim": "sgd",
            "optim_args": "momentum=0.9",
            "learning_rate": 0.05,
            "max_steps": 6,
        },
        leaves=2,
    ),
    Guest(
        {
            "seed": 4,
            "lora_r": 32,
            "lora_alpha": 8,
            "optim": "adafactor",
            "max_grad_norm": 0.05,
            "per_device_train_batch_size": 2,
            "max_steps": 4,
        },
        joins=1,
    ),
    Guest(
        {
            "seed": 5,
            "lora_r": 16,
            "target_modules": r".*mlp\.(up|down)_proj",
            "lora_dropout": 0.3,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 1,
            "max_steps": 4,
        },
        joins=1,
    ),
    Guest(  # its weights are so large after its first step that its loss is NaN
        {
            "seed": 6,
            "lora_r": 8,
            "learning_rate": 1e30,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 1,
            "max_steps": 6,
        },
        joins=1,
    ),
    Guest(
        {
            "seed": 7,
            "lora_r": 8,
            "weight_decay": 0.1,
            "loraplus_lr_ratio": 16,
            "per_device_train_batch_size": 3,
            "max_steps": 6,
        },
        joins=2,
        leaves=1,
    ),
    Guest(
        {
            "seed": 8,
            "lora_r": 1,
            "learning_rate": 5e-3,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 3,
            "max_steps": 4,
        },
        joins=3,
    ),
)

SCHEDULE: Mapping[str, object] = {"eval_strategy": "steps", "eval_steps": 2}
"""When each of them validates."""
