"""One trial as a person writes it with transformers' Trainer and PEFT.

All recipes of this folder that train with the Trainer train with this; a tool sees a trial through
``report``, which is called after each validation.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    TrainingArguments,
)

from examples import Data
from progress import Progress, Report
from token_mean_trainer import TokenMeanTrainer
from workload import Config, Workload

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def load_base(workload: Workload) -> PreTrainedModel:
    """Load the model that all trials adapt."""
    model = AutoModelForCausalLM.from_pretrained(workload.model, dtype=workload.dtype)
    model.config.use_cache = False
    assert isinstance(model, PreTrainedModel)
    return model


@lru_cache(maxsize=1)
def resident(workload: Workload) -> tuple[PreTrainedModel, Data]:
    """Return what the trials of one process share, loaded when first asked for."""
    return load_base(workload), Data(workload)


def add_adapter(base: PreTrainedModel, config: Config) -> PeftModel:
    """Put a new adapter into the model; ``unload`` takes it out again."""
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=2 * config.lora_r,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora)
    assert isinstance(model, PeftModel)
    return model


def training_arguments(
    workload: Workload, config: Config, number: int, out: Path
) -> TrainingArguments:
    """Return a trial's arguments: nothing is logged, drawn or counted that the search does not need."""
    return TrainingArguments(
        output_dir=str(out / "trainer"),
        use_cpu=not torch.cuda.is_available(),
        bf16=workload.dtype == "bfloat16",
        seed=number,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        max_steps=workload.max_steps,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=workload.eval_batch_size,
        eval_strategy="steps",
        eval_steps=workload.eval_steps,
        prediction_loss_only=True,
        save_strategy="no",  # the callback keeps the best adapter
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )


def train_trial(
    base: PreTrainedModel,
    workload: Workload,
    data: Data,
    out: Path,
    number: int,
    config: Config,
    report: Report,
) -> float:
    """Train one trial on a model that is loaded, and leave that as it was; return its best loss.

    Args:
        base: Without adapters.
        workload: Whose script says where the trial stops, if it has one.
        data: All trials' examples.
        out: Folder of the search.
        number: The trial's, and its seed.
        config: The trial's.
        report: Asked after every validation whether the trial is to stop. What it raises ends the
            trial, and is raised here.
    """
    transformers.set_seed(number)
    progress = Progress(workload, out, number, report)
    model = add_adapter(base, config)
    try:
        trainer = TokenMeanTrainer(
            model=model,
            args=training_arguments(workload, config, number, out),
            train_dataset=data.train,
            eval_dataset=data.validation,
            data_collator=data.collate,
            callbacks=[progress],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    finally:
        model.unload()
    return progress.best
