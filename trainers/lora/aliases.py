"""Other tools' names and values for the options of the LoRA trainer.

LLaMA-Factory's flat training files are understood whole; Axolotl's and TRL's names where they can
only mean one thing. Those of the data are in ``data_aliases``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trainers.lora.data.aliases import DATA_TRANSLATORS

ALIASES: Mapping[str, str] = {
    # LLaMA-Factory
    "lora_rank": "lora_r",
    "lora_target": "target_modules",
    "additional_target": "modules_to_save",
    "cutoff_len": "max_length",
    "max_samples": "max_train_samples",
    "warmup_ratio": "warmup_steps",
    "tokenized_path": "dataset_prepared_path",
    "early_stopping_steps": "early_stopping_patience",
    # PEFT, TRL and transformers, also their older names
    "r": "lora_r",
    "bnb_4bit_quant_type": "quantization_type",
    "bnb_4bit_use_double_quant": "double_quantization",
    "max_seq_length": "max_length",
    "max_eval_samples": "eval_max_samples",
    "dataset_config": "dataset_config_name",
    "dataset_test_split": "dataset_eval_split",
    "chat_template_path": "chat_template",
    "torch_dtype": "dtype",
    "activation_checkpointing": "gradient_checkpointing",
    # Axolotl
    "base_model": "model_name_or_path",
    "sequence_len": "max_length",
    "micro_batch_size": "per_device_train_batch_size",
    "num_epochs": "num_train_epochs",
    "lora_target_modules": "target_modules",
    "eval_max_new_tokens": "max_new_tokens",
    "eval_batch_size": "per_device_eval_batch_size",
    "lr_scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "peft_init_lora_weights": "init_lora_weights",
    "lora_modules_to_save": "modules_to_save",
    "noisy_embedding_alpha": "neftune_noise_alpha",
    "train_on_inputs": "train_on_prompt",
    "val_set_size": "val_size",
    "sample_packing": "packing",
}

_STUDY_WRITES = "the study decides where and what is written"
_STUDY_SAVES = "every validation is saved, and the study keeps what it needs"
_RUNTIME = "it says how another tool runs, not what is trained"
_TRACKERS = "trackers are chosen by report_to, and take their settings from the environment"
_OWN_LOADER = "the data is tokenised once and held in memory"

IGNORED: Mapping[str, str] = {
    "output_dir": _STUDY_WRITES,
    "overwrite_output_dir": _STUDY_WRITES,
    "logging_dir": _STUDY_WRITES,
    "plot_loss": "the dashboard plots",
    "report_to": _STUDY_WRITES,
    "run_name": _STUDY_WRITES,
    "save_steps": _STUDY_SAVES,
    "save_strategy": _STUDY_SAVES,
    "save_total_limit": _STUDY_SAVES,
    "saves_per_epoch": _STUDY_SAVES,
    "save_only_model": _STUDY_SAVES,
    "save_safetensors": _STUDY_SAVES,
    "resume_from_checkpoint": "a study resumes by its name",
    "overwrite_cache": _OWN_LOADER,
    "preprocessing_num_workers": _OWN_LOADER,
    "dataloader_num_workers": _OWN_LOADER,
    "ddp_timeout": "trials are placed on devices, not spread over processes",
    "loraplus_lr_embedding": "embeddings get no adapter; modules_to_save trains them whole",
    "pissa_convert": "a saved adapter always fits the unchanged base model",
    "compute_accuracy": "eval_token_accuracy is always reported",
    "include_num_input_tokens_seen": "every step's tokens per second are logged",
    "pad_to_sequence_len": "rows are padded to the longest of their batch",
    "tf32": _RUNTIME,
    "strict": _RUNTIME,
    "debug": _RUNTIME,
    "local_rank": _RUNTIME,
    "wandb_project": _TRACKERS,
    "wandb_entity": _TRACKERS,
    "wandb_watch": _TRACKERS,
    "wandb_name": _TRACKERS,
    "wandb_run_id": _TRACKERS,
    "wandb_log_model": _TRACKERS,
    "deepspeed": "one process trains a trial; a model too large for a GPU takes 'resources: {gpu: 2}'",
    "dataset_num_proc": _OWN_LOADER,
    "dataset_processes": _OWN_LOADER,
    "eval_on_each_dataset": "every validation set has its own metrics",
}

_ONLY_VALUE: Mapping[str, tuple[tuple[object, ...], str]] = {
    "stage": (("sft",), "Only supervised fine-tuning is trained here."),
    "do_train": ((True,), "A trial always trains."),
    "do_predict": ((False,), "Leave it out."),
    "quantization_method": (("bnb", "bitsandbytes"), "4 and 8 bits are bitsandbytes'."),
    "use_galore": ((False,), "It projects the gradients of whole weights: use optim: adamw_8bit."),
    "use_apollo": ((False,), "It projects the gradients of whole weights: use optim: adamw_8bit."),
    "use_badam": ((False,), "It trains a block of weights at a time: use finetuning_type: lora."),
    "use_llama_pro": ((False,), "It adds layers to the model: use finetuning_type: lora."),
    "eval_packing": ((False, None), "Validation examples are not packed."),
    "eval_sample_packing": ((False, None), "Validation examples are not packed."),
    "packing_strategy": (("bfd",), "Examples are packed whole, by best fit."),
    "dataset_text_field": (
        ("text",),
        "Rename it: 'datasets: [{path: ..., columns: {text: ...}}]'.",
    ),
    "streaming": ((False,), "The data is tokenised once and held in memory."),
}
"""Options that are dropped when they ask for what is done anyway, and refused otherwise."""


def translate_values(given: Mapping[str, object]) -> dict[str, object]:
    """Return ``given`` without ignored options, and with other tools' values turned into ours.

    Names in ``ALIASES`` keep their name here. An option that comes from two names is named by both.

    Raises:
        ValueError: A value that has no meaning here, or two options that say the same thing.
    """
    translated: dict[str, object] = {}
    source: dict[str, str] = {}
    for name, value in given.items():
        if name in IGNORED or name == "dataset_dir" or (name in ALIASES and value is None):
            continue
        for target, new_value in _translate(name, value, given).items():
            if target in translated and translated[target] != new_value:
                raise ValueError(
                    f"{name!r} and {source[target]!r} are the same option: give only one of them."
                )
            translated[target] = new_value
            source[target] = name
    return translated


def _translate(name: str, value: object, given: Mapping[str, object]) -> dict[str, object]:
    if name in _ONLY_VALUE:
        return _drop_only_value(name, value)
    if name in DATA_TRANSLATORS:
        return DATA_TRANSLATORS[name](value, given)
    if name in ("pissa_init", "pissa_iter"):
        return _pissa(name, value, given.get("pissa_iter", 16))
    if name == "evals_per_epoch":
        return _evals_per_epoch(value, given)
    if name in _TRANSLATORS:
        return _TRANSLATORS[name](value)
    return {name: value}


def _drop_only_value(name: str, value: object) -> dict[str, object]:
    allowed, advice = _ONLY_VALUE[name]
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not supported, only {allowed[0]!r}. {advice}")
    return {}


def _dtype_if(dtype: str) -> Callable[[object], dict[str, object]]:
    def translate(value: object) -> dict[str, object]:
        if value not in (True, False, "auto"):
            raise ValueError(f"a switch for {dtype} must be true or false, got {value!r}.")
        return {"dtype": dtype} if value is True else {}

    return translate


def _bits_if(bits: int) -> Callable[[object], dict[str, object]]:
    return lambda value: {"quantization_bit": bits} if value is True else {}


def _pissa(name: str, value: object, num_iterations: object) -> dict[str, object]:
    """LLaMA-Factory's two options for one start; -1 iterations are a whole decomposition."""
    if name == "pissa_iter" or value is not True:
        return {}
    exact = num_iterations == -1
    return {"init_lora_weights": "pissa" if exact else f"pissa_niter_{num_iterations}"}


def _checkpointing_unless(value: object) -> dict[str, object]:
    return {"gradient_checkpointing": value is not True}


def _axolotl_adapter(value: object) -> dict[str, object]:
    if value not in ("lora", "qlora", None, ""):
        raise ValueError(f"adapter: {value!r} is not supported. Give lora, qlora, or leave it out.")
    return {"finetuning_type": "lora" if value else "full"}


def _attention_if(name: str) -> Callable[[object], dict[str, object]]:
    return lambda value: {"attn_implementation": name} if value is True else {}


def _lora_target_linear(value: object) -> dict[str, object]:
    return {"target_modules": "all-linear"} if value is True else {}


def _flash_attn(value: object) -> dict[str, object]:
    known: dict[object, dict[str, object]] = {
        "auto": {},
        "disabled": {"attn_implementation": "eager"},
        False: {"attn_implementation": "eager"},
        "sdpa": {"attn_implementation": "sdpa"},
        "fa2": {"attn_implementation": "flash_attention_2"},
    }
    if value not in known:
        raise ValueError(
            f"flash_attn: {value!r} is not known. Give attn_implementation by transformers' name, "
            f"as in 'attn_implementation: sdpa'."
        )
    return known[value]


def _warmup_ratio(value: object) -> dict[str, object]:
    if not isinstance(value, int | float):
        return {"warmup_ratio": value}  # a searched range: checked where its values are known
    if not 0 <= value < 1:
        raise ValueError(
            f"warmup_ratio must be from 0 to below 1, got {value!r}. Give a number of steps as "
            f"warmup_steps."
        )
    return {"warmup_ratio": value}


def _do_eval(value: object) -> dict[str, object]:
    if not isinstance(value, bool):
        raise ValueError(f"do_eval must be true or false, got {value!r}.")
    return {} if value else {"eval_strategy": "no"}


def _evals_per_epoch(value: object, given: Mapping[str, object]) -> dict[str, object]:
    """Turn Axolotl's validations of an epoch into a fraction of the trial."""
    epochs = given.get("num_epochs", given.get("num_train_epochs"))
    if isinstance(value, int) and isinstance(epochs, int | float) and value * epochs > 1:
        return {"eval_steps": 1 / (value * epochs)}
    if value == 1:
        return {"eval_strategy": "epoch"}
    raise ValueError(
        f"evals_per_epoch: {value!r} needs num_epochs beside it, a number, and to be 1 or more. "
        f"Say when to validate by eval_steps: below 1 it is a fraction of the trial."
    )


def _eval_strategy(value: object) -> dict[str, object]:
    return {"eval_strategy": "no" if value is False else value}  # YAML 1.1 reads no as false


_TRANSLATORS: Mapping[str, Callable[[object], dict[str, object]]] = {
    "bf16": _dtype_if("bfloat16"),
    "pure_bf16": _dtype_if("bfloat16"),
    "fp16": _dtype_if("float16"),
    "load_in_4bit": _bits_if(4),
    "load_in_8bit": _bits_if(8),
    "disable_gradient_checkpointing": _checkpointing_unless,
    "adapter": _axolotl_adapter,
    "flash_attn": _flash_attn,
    "flash_attention": _attention_if("flash_attention_2"),
    "sdp_attention": _attention_if("sdpa"),
    "eager_attention": _attention_if("eager"),
    "lora_target_linear": _lora_target_linear,
    "warmup_ratio": _warmup_ratio,
    "do_eval": _do_eval,
    "eval_strategy": _eval_strategy,
    "evaluation_strategy": _eval_strategy,
}
