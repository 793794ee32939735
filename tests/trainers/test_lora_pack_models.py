"""The packed pass on each architecture: it is shared, and gives what transformers and PEFT give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainers.lora import LoraTrainer
from trainers.lora.data.encoding import IGNORE_INDEX
from trainers.lora.passes import StepLoss
from trainers.lora.trial import Trial

Options = dict[str, object]
Gradients = dict[str, Tensor]

WINDOW = 40
"""Of models with a sliding window: some rows are wider, some narrower."""

SMALL: Options = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GROUPED: Options = {**SMALL, "num_key_value_heads": 2}
GEMMA: Options = {**GROUPED, "head_dim": 16}
GPT2: Options = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
NO_DROPOUT: Options = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

SHARING: dict[str, tuple[str, Options]] = {
    "llama": ("llama", GROUPED),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 32}),
    "gemma": ("gemma", GEMMA),
    "gemma2": (
        "gemma2",
        {**GEMMA, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("gemma3_text", {**GEMMA, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": WINDOW}),
    "mistral-eager": ("mistral", {**GROUPED, "sliding_window": WINDOW}),
    "phi": ("phi", SMALL),
    "phi3": ("phi3", {**GROUPED, "sliding_window": WINDOW}),
    "gpt_neox": ("gpt_neox", SMALL),
    "granite": ("granite", {**GROUPED, "logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "cohere": ("cohere", {**GROUPED, "logit_scale": 0.25}),
    "gpt2-quiet": ("gpt2", {**GPT2, **NO_DROPOUT}),
}
EAGER = {"gemma2", "mistral-eager"}

LONG: Options = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}

TAKING_TURNS: dict[str, tuple[str, Options, str]] = {
    "gpt2": ("gpt2", GPT2, "dropout of its own"),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}, "end to end"),
    "falcon": (
        "falcon",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
        "end to end",
    ),
    "mixtral": ("mixtral", {**GROUPED, "num_local_experts": 4}, "its experts multiply"),
    "phi3-longrope": (
        "phi3",
        {**GROUPED, "original_max_position_embeddings": 64}
        | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, **LONG}},
        "a row of more than 64 tokens changes the positions",
    ),
    "mamba": ("mamba", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}, "end to end"),
    "lfm2": ("lfm2", {**GROUPED, "layer_types": ["conv", "full_attention"]}, "end to end"),
}

LENGTHS = [9, 11, 35, 50, 20, 70, 14, 100, 26, 41, 60, 8]

TRIALS: list[Options] = [
    {"lora_r": 8, "seed": 1, "per_device_train_batch_size": 2},
    {"lora_r": 40, "seed": 2, "per_device_train_batch_size": 3, "use_rslora": True},
    {"lora_r": 12, "seed": 3, "per_device_train_batch_size": 2, "lora_alpha": 64},
]
ATTENTION_ONLY = r".*(q_proj|qkv_proj|query_key_value|c_attn)"
COMMON: Options = {"learning_rate": 1e-2, "max_steps": 3, "lora_dropout": 0.0}


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows under 32 tokens, over 32, and over the sliding window."""
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    words = ["one", "two", "three", "four", "five", "six"]
    rows = [
        {
            "prompt": f"say {index}",
            "completion": " ".join(words[(index * 5 + i * i) % 6] for i in range(length)),
        }
        for index, length in enumerate(LENGTHS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save(kind: str, options: Mapping[str, object], folder: Path, like: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    shutil.copytree(like, folder, ignore=shutil.ignore_patterns("*.safetensors", "*config.json"))
    tokenizer = AutoTokenizer.from_pretrained(like)
    tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model(kind, **{**options, "vocab_size": len(tokenizer)})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():  # differences are to show
            if parameter.ndim > 1 and "embed" not in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(folder)


def make_trainer(name: str, folder: Path, rows_file: Path, **options: object) -> LoraTrainer:
    fixed: Options = {
        "model_name_or_path": str(folder),
        "dtype": "float32",
        "train_file": str(rows_file),
        "val_size": 2,
        "max_length": 128,
        **({"attn_implementation": "eager"} if name in EAGER else {}),
        **options,
    }
    trainer = LoraTrainer(fixed, "cpu")
    for key, of_trial in enumerate(TRIALS):
        targets = ATTENTION_ONLY if key == 1 else "all-linear"
        trainer.add(key, {"target_modules": targets, **COMMON, **of_trial, **fixed})
    return trainer


def backward(trainer: LoraTrainer, *keys: int) -> dict[int, tuple[float, Gradients]]:
    """Return the loss and the gradients of these trials' next steps, in one pass."""
    trials = [trainer._engine._trials[key] for key in keys]
    found = {}
    for trial, outcome in zip(trials, trainer._engine._passes.backward(trials), strict=True):
        assert isinstance(outcome, StepLoss), outcome
        gradients = {}
        for name, weight in trial.parameters.items():
            assert weight.grad is not None
            gradients[name] = weight.grad.clone()
        trial.optimizer.zero_grad()
        found[trial.key] = (outcome.loss, gradients)
    return found


def reference(
    trainer: LoraTrainer, trial: Trial, folder: Path, adapter: Path, name: str
) -> tuple[float, Gradients]:
    """What transformers and PEFT make of a trial's next step: a padded batch, HF's loss."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    attention = "eager" if name in EAGER else "sdpa"
    base = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )
    model: Any = PeftModel.from_pretrained(base, str(adapter), is_trainable=True).train()
    (rows,) = trial.order.micro_batches(trial.step + 1)
    examples = trainer._engine._dataset.train_examples(rows)
    widest = max(len(example.input_ids) for example in examples)
    shape = (len(examples), widest)
    ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORE_INDEX)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        ids[row, :length], mask[row, :length] = example.input_ids, 1
        labels[row, :length] = example.labels
    loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
    loss.backward()
    gradients = {
        full.replace(".default", ""): weight.grad
        for full, weight in model.named_parameters()
        if weight.requires_grad
    }
    return loss.item(), gradients


def assert_same_bits(one: tuple[float, Gradients], other: tuple[float, Gradients]) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    different = [name for name, gradient in one[1].items() if not gradient.equal(other[1][name])]
    assert not different


@pytest.mark.parametrize("name", SHARING)
def test_a_pack_has_the_bits_of_trials_alone_and_the_gradients_of_transformers_and_peft(
    name: str, tmp_path: Path, model_folder: Path, rows_file: Path
) -> None:
    folder = tmp_path / "model"
    save(*SHARING[name], folder, model_folder)
    trainer = make_trainer(name, folder, rows_file)
    engine = trainer._engine
    assert not [note for note in engine._notes if "take turns" in note]
    for _ in range(2):
        trainer.advance()
    keys = tuple(range(len(TRIALS)))
    together = backward(trainer, *keys)
    assert len(engine._passes.num_tokens) == 1  # one pass
    beside_one = backward(trainer, 2, 1)
    for key in keys:
        alone = backward(trainer, key)[key]
        assert_same_bits(together[key], alone)
        if key in beside_one:
            assert_same_bits(beside_one[key], alone)
        trainer.save(key, tmp_path / str(key))
        trial, adapter = engine._trials[key], tmp_path / str(key) / "adapter"
        loss, gradients = reference(trainer, trial, folder, adapter, name)
        assert together[key][0] == pytest.approx(loss, rel=1e-5)
        assert together[key][1].keys() == gradients.keys()
        for weight, gradient in gradients.items():
            size = gradient.norm()
            assert size > 0
            error = (together[key][1][weight] - gradient).norm() / size
            assert error < 1e-5, weight


@pytest.mark.parametrize("name", TAKING_TURNS)
def test_models_that_cannot_share_a_pass_take_turns_and_say_so(
    name: str, tmp_path: Path, model_folder: Path, rows_file: Path
) -> None:
    kind, options, why = TAKING_TURNS[name]
    save(kind, options, tmp_path / "model", model_folder)
    targets: Options = {"target_modules": "in_proj,x_proj"} if name == "mamba" else {}
    trainer = make_trainer(name, tmp_path / "model", rows_file, **targets)
    (note,) = [note for note in trainer._engine._notes if "take turns" in note]
    assert why in note
    reports = [report for _ in range(3) for report in trainer.advance()]
    assert [report.end for report in reports if report.end] == ["finished"] * 3
