"""LoraOptions: defaults, checks, and other tools' names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.new_process import printed_by
from trainers.lora import LoraOptions

BASE = {"model_name_or_path": "org/model", "train_file": "train.jsonl", "val_size": 0.1}


def make(**options: object) -> LoraOptions:
    return LoraOptions.model_validate({**BASE, **options})


def test_importing_the_trainer_loads_no_torch() -> None:
    code = (
        "import sys; from trainers.lora import LoraTrainer;"
        "LoraTrainer.Options.model_json_schema();"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    assert printed_by(code) == "[]"


def test_every_option_is_described() -> None:
    assert [n for n, field in LoraOptions.model_fields.items() if not field.description] == []


def test_class_variables_name_options() -> None:
    names = set(LoraOptions.model_fields)
    assert LoraOptions.shared <= names
    assert LoraOptions.budget <= names
    assert set(LoraOptions.aliases.values()) <= names
    assert not names & set(LoraOptions.aliases)
    assert not names & set(LoraOptions.ignored)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat\n"):
        make(learning_rat=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"val_size": None, "eval_strategy": "steps"}, "needs examples to validate on"),
        ({"validation_file": "val.jsonl"}, "give one of validation_file and val_size"),
        ({"quantization_bit": 3}, "4 or 8"),
        ({"max_steps": 0}, "max_steps"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"lr_scheduler_type": "triangular"}, "lr_scheduler_type"),
        ({"warmup_steps": 2.5}, "warmup_steps"),
        ({"target_modules": []}, "target_modules"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        make(**options)


def test_alpha_defaults_to_twice_the_rank() -> None:
    assert make(lora_r=8).alpha == 16
    assert make(lora_r=8, lora_alpha=5).alpha == 5


def test_target_modules_may_be_a_list_or_one_line() -> None:
    assert make(target_modules="q_proj, v_proj").target_modules == ("q_proj", "v_proj")
    assert make(target_modules=["q_proj"]).target_modules == ("q_proj",)
    assert make(target_modules="all").target_modules == "all-linear"


def test_options_survive_json() -> None:
    options = make(target_modules="q_proj,v_proj", warmup_steps=0.1, lora_alpha=7)
    assert LoraOptions.model_validate_json(options.model_dump_json()) == options


def test_a_llama_factory_file_is_understood(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "mine.json"}}))
    translated = LoraOptions.translate(
        {
            "model_name_or_path": "Qwen/Qwen3-4B-Instruct-2507",
            "trust_remote_code": True,
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "lora_rank": 8,
            "lora_target": "all",
            "dataset": "mine",
            "dataset_dir": str(tmp_path),
            "template": "qwen3_nothink",
            "cutoff_len": 2048,
            "max_samples": 1000,
            "preprocessing_num_workers": 16,
            "dataloader_num_workers": 4,
            "output_dir": "saves/qwen3",
            "logging_steps": 10,
            "save_steps": 500,
            "plot_loss": True,
            "overwrite_output_dir": True,
            "save_only_model": False,
            "report_to": "none",
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 8,
            "learning_rate": 1.0e-4,
            "num_train_epochs": 3.0,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
            "bf16": True,
            "ddp_timeout": 180000000,
            "resume_from_checkpoint": None,
            "val_size": 0.1,
            "per_device_eval_batch_size": 1,
            "eval_strategy": "steps",
            "eval_steps": 500,
            "quantization_bit": 4,
        }
    )
    options = LoraOptions.model_validate(translated)
    assert options.train_file == str(tmp_path / "mine.json")
    assert (options.lora_r, options.max_length, options.max_train_samples) == (8, 2048, 1000)
    assert (options.warmup_steps, options.dtype) == (0.1, "bfloat16")
    assert options.target_modules == "all-linear"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"finetuning_type": "full"}, {"finetuning_type": "full"}),
        ({"quantization_bit": 8, "quantization_method": "bnb"}, {"quantization_bit": 8}),
        ({"quantization_type": "fp4", "quantization_bit": 4}, {"quantization_type": "fp4"}),
        ({"double_quantization": False}, {"double_quantization": False}),
        ({"load_in_8bit": True}, {"quantization_bit": 8}),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, {"quantization_type": "fp4"}),
        ({"bnb_4bit_use_double_quant": False}, {"double_quantization": False}),
        ({"pissa_init": True}, {"init_lora_weights": "pissa_niter_16"}),
        ({"pissa_init": True, "pissa_iter": 4}, {"init_lora_weights": "pissa_niter_4"}),
        ({"pissa_iter": -1, "pissa_init": True}, {"init_lora_weights": "pissa"}),
        ({"pissa_init": False, "pissa_iter": 4, "pissa_convert": True}, {}),
        (
            {"additional_target": "embed_tokens,lm_head"},
            {"modules_to_save": ("embed_tokens", "lm_head")},
        ),
        ({"loraplus_lr_ratio": 16.0, "loraplus_lr_embedding": 1e-6}, {"loraplus_lr_ratio": 16.0}),
        ({"disable_gradient_checkpointing": False}, {"gradient_checkpointing": True}),
        ({"neftune_noise_alpha": 5}, {"neftune_noise_alpha": 5.0}),
        ({"adapter": "qlora", "load_in_4bit": True}, {"finetuning_type": "lora"}),
        ({"adapter": None}, {"finetuning_type": "full"}),
        ({"optimizer": "adamw_bnb_8bit"}, {"optim": "adamw_bnb_8bit"}),
        ({"peft_use_dora": True, "peft_use_rslora": True}, {"use_dora": True, "use_rslora": True}),
        ({"peft_init_lora_weights": "olora"}, {"init_lora_weights": "olora"}),
        ({"lora_modules_to_save": ["norm"]}, {"modules_to_save": ("norm",)}),
        ({"noisy_embedding_alpha": 5}, {"neftune_noise_alpha": 5.0}),
    ],
)
def test_methods_go_by_other_tools_names(
    given: dict[str, object], expected: dict[str, object]
) -> None:
    options = LoraOptions.model_validate(LoraOptions.translate({**BASE, **given}))
    changed = {name: getattr(options, name) for name in expected}
    assert changed == expected


def test_an_axolotl_file_is_understood() -> None:
    translated = LoraOptions.translate(
        {
            "base_model": "org/model",
            "sequence_len": 128,
            "micro_batch_size": 2,
            "num_epochs": 1,
            "lora_target_modules": ["q_proj"],
            "lr_scheduler": "cosine",
            "load_in_4bit": True,
            "train_file": "train.jsonl",
            "val_size": 0.1,
        }
    )
    options = LoraOptions.model_validate(translated)
    assert options.per_device_train_batch_size == 2
    assert options.quantization_bit == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lora_rank": 8, "lora_r": 8}, "'lora_r' and 'lora_rank'"),
        ({"bf16": True, "fp16": True}, "'fp16' and 'bf16'"),
        ({"use_galore": True}, "use optim: adamw_8bit"),
        ({"stage": "dpo"}, "'dpo' is not supported, only 'sft'"),
        ({"do_train": False}, "A trial always trains"),
        ({"warmup_ratio": 10}, "Give a number of steps as warmup_steps"),
        ({"do_eval": "maybe"}, "do_eval must be true or false"),
        ({"dataset": "a,a"}, "names a dataset twice"),
        ({"dataset": "a", "dataset_dir": "/nowhere"}, "/nowhere/dataset_info.json"),
        ({"packing": False, "neat_packing": True}, "contradict"),
    ],
)
def test_what_has_no_meaning_here_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoraOptions.translate(given)


def test_axolotls_empty_keys_and_switches_are_understood() -> None:
    given = {
        "base_model": "org/model",
        "adapter": "qlora",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "lora_target_modules": None,
        "lora_target_linear": True,
        "datasets": [{"path": "a.jsonl", "type": "alpaca"}],
        "val_set_size": 0.05,
        "sample_packing": True,
        "eval_sample_packing": False,
        "pad_to_sequence_len": True,
        "wandb_project": None,
        "special_tokens": None,
        "fsdp": None,
        "tf32": False,
        "sdp_attention": True,
        "optimizer": "adamw_bnb_8bit",
        "num_epochs": 3,
        "evals_per_epoch": 4,
        "saves_per_epoch": 1,
    }
    options = LoraOptions.model_validate(LoraOptions.translate(given))
    assert (options.target_modules, options.quantization_bit) == ("all-linear", 4)
    assert (options.attn_implementation, options.packing) == ("sdpa", True)
    with pytest.raises(ValidationError, match="fsdp"):
        LoraOptions.model_validate(LoraOptions.translate({**given, "fsdp": ["full_shard"]}))
