"""The peer: stock PEFT as a person uses it, one trial after the other on one base model.

Uses nothing of ``trainers``, so that no improvement there improves the peer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from benchmarks.packing.rows import Rows


def load_stock_model(model: str, quantized: bool) -> Any:
    """Load a model as transformers' documentation has it: in bfloat16, or in NF4 above that."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    arguments: dict[str, object] = {"dtype": torch.bfloat16, "device_map": {"": "cpu"}}
    if quantized:
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, **arguments)
    loaded.config.use_cache = False
    return loaded


class PeftInTurn:
    """One model with every trial's adapter, of which one at a time is active."""

    def __init__(self, model: Any, ranks: Sequence[int], autocast: bool) -> None:
        """Add the adapters.

        Args:
            model: Of transformers; changed in place.
            ranks: Of each trial's adapter.
            autocast: As transformers' Trainer does with ``bf16=True``: adapters in float32, and
                autocast around the forward pass. Otherwise adapters are in bfloat16 too.
        """
        self._autocast = autocast
        self._model: Any = None
        for trial, rank in enumerate(ranks):
            config = LoraConfig(
                r=rank,
                lora_alpha=2 * rank,
                lora_dropout=0.0,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            name = _name(trial)
            if self._model is None:
                self._model = get_peft_model(
                    model, config, adapter_name=name, autocast_adapter_dtype=autocast
                )
            else:
                self._model.add_adapter(name, config, autocast_adapter_dtype=autocast)
        self._model.train()

    def run(self, batches: Sequence[Rows]) -> float:
        """Do one forward and backward pass of each trial; return the seconds of the passes alone.

        Choosing the adapter and clearing gradients are not counted: whoever trains one trial to
        its end before the next chooses once.
        """
        seconds = 0.0
        for trial, rows in enumerate(batches):
            self._model.set_adapter(_name(trial))
            start = time.perf_counter()
            self._loss(rows).backward()
            seconds += time.perf_counter() - start
            self._model.zero_grad(set_to_none=True)
        return seconds

    def _loss(self, rows: Rows) -> Tensor:
        context: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self._autocast:
            context = torch.autocast("cpu", dtype=torch.bfloat16)
        with context:
            output = self._model(
                input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=rows.labels
            )
        loss: Tensor = output.loss
        return loss


def _name(trial: int) -> str:
    return f"trial_{trial}"
