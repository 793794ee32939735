"""Other tools' names and values for the options of the LoRA trainer.

LLaMA-Factory's flat training files are understood whole; Axolotl's and TRL's names where they can
only mean one thing. Reads LLaMA-Factory's ``dataset_info.json``, but no data and no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

ALIASES: Mapping[str, str] = {
    # LLaMA-Factory
    "lora_rank": "lora_r",
    "lora_target": "target_modules",
    "cutoff_len": "max_length",
    "max_samples": "max_train_samples",
    "warmup_ratio": "warmup_steps",
    "early_stopping_steps": "early_stopping_patience",
    # PEFT, TRL and transformers, also their older names
    "r": "lora_r",
    "max_seq_length": "max_length",
    "max_eval_samples": "eval_max_samples",
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
}

_STUDY_WRITES = "the study decides where and what is written"
_STUDY_SAVES = "every validation is saved, and the study keeps what it needs"
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
    "template": "the chat template that comes with the model is used",
}

_ONLY_VALUE: Mapping[str, tuple[tuple[object, ...], str]] = {
    "finetuning_type": (("lora",), "Only LoRA is trained here."),
    "stage": (("sft",), "Only supervised fine-tuning is trained here."),
    "do_train": ((True,), "A trial always trains."),
    "do_predict": ((False,), "Leave it out."),
    "train_on_prompt": ((False,), "The loss is taken on the answers only."),
    "mask_history": ((False,), "The loss is taken on all answers of a conversation."),
    "packing": ((False, None), "Examples are padded, not packed."),
    "neat_packing": ((False,), "Examples are padded, not packed."),
    "quantization_method": (("bnb", "bitsandbytes"), "4 bits are bitsandbytes' NF4."),
    "quantization_type": (("nf4",), "4 bits are bitsandbytes' NF4."),
    "load_in_8bit": ((False,), "8 bits train slowly: use quantization_bit: 4."),
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
        if name in IGNORED or name == "dataset_dir":
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
    if name in _DATASETS:
        return _read_dataset_info(name, value, given.get("dataset_dir", "data"))
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


def _load_in_4bit(value: object) -> dict[str, object]:
    return {"quantization_bit": 4} if value is True else {}


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
    "load_in_4bit": _load_in_4bit,
    "flash_attn": _flash_attn,
    "warmup_ratio": _warmup_ratio,
    "do_eval": _do_eval,
    "eval_strategy": _eval_strategy,
    "evaluation_strategy": _eval_strategy,
}

_DATASETS: Mapping[str, str] = {"dataset": "train_file", "eval_dataset": "validation_file"}

_DEFAULT_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "sharegpt": {"messages": "conversations"},
}


def _read_dataset_info(name: str, value: object, folder: object) -> dict[str, object]:
    """Find the one local file that LLaMA-Factory's ``dataset`` names in ``dataset_info.json``."""
    option = _DATASETS[name]
    advice = f"Name the file itself instead: '{option}: path/to/data.jsonl'."
    if not isinstance(value, str) or "," in value:
        raise ValueError(f"{name}: {value!r} must name exactly one dataset. {advice}")
    info_file = Path(str(folder)) / "dataset_info.json"
    try:
        entry = json.loads(info_file.read_text(encoding="utf-8"))[value.strip()]
        file_name = Path(str(folder)) / entry["file_name"]
    except FileNotFoundError:
        raise ValueError(
            f"{name}: {value!r} is looked up in {info_file}, which does not exist. Set "
            f"dataset_dir to the folder that holds it. {advice}"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{info_file}:{error.lineno}: not JSON: {error.msg}. {advice}") from None
    except KeyError as error:
        raise ValueError(
            f"{name}: {value!r} has no local file in {info_file} (no {error} there). {advice}"
        ) from None
    _check_columns(f"{info_file}: {value.strip()!r}", entry)
    return {option: str(file_name)}


def _check_columns(where: str, entry: Mapping[str, object]) -> None:
    """Refuse renamed columns, which the data reader would not find."""
    layout = str(entry.get("formatting", "alpaca"))
    default = _DEFAULT_COLUMNS.get(layout, {})
    columns = entry.get("columns") or {}
    assert isinstance(columns, Mapping)
    if layout == "sharegpt" and columns.get("messages") == "messages":
        return  # OpenAI's layout, recognised by its column
    renamed = {key: to for key, to in columns.items() if key in default and to != default[key]}
    if renamed:
        raise ValueError(
            f"{where} renames columns ({renamed}), which is not supported. Write the file with "
            f"the columns {', '.join(default.values())}."
        )
