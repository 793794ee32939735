"""A trial joins and leaves quickly: a cheap check, with a margin that noise does not use up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from trainers.lora.model.adapters import AdapterPool
from trainers.lora.model.base_model import load_base_model
from trainers.lora.options import LoraOptions

LEAST_RATIO = 3.0
"""Of PEFT's time for a further adapter to ours; 7 where this was written."""

NUM_ROUNDS = 5


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with as many layers as a real one, each of them tiny."""
    folder = tmp_path_factory.mktemp("deep-llama")
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=30,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_an_adapter_joins_without_a_walk_over_the_model_for_each_of_its_layers(
    deep_model: Path,
) -> None:
    given = {"model_name_or_path": str(deep_model), "train_file": "t.jsonl", "dtype": "float32"}
    options = LoraOptions.model_validate({**given, "max_length": 32})
    pool = AdapterPool(load_base_model(options, "cpu"))
    pool.add(0, options)
    lora = LoraConfig(r=options.lora_r, target_modules="all-linear", task_type="CAUSAL_LM")
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(deep_model), lora)
    ours, theirs = [], []
    for number in range(1, NUM_ROUNDS + 1):
        start = time.process_time()
        pool.add(number, options)
        ours.append(time.process_time() - start)
        start = time.process_time()
        peft.add_adapter(f"another{number}", lora)
        theirs.append(time.process_time() - start)
    assert min(theirs) / min(ours) > LEAST_RATIO
