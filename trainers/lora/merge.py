"""Full weights from a base model and an adapter: what serves without PEFT."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

from trainers.lora.base_model import load_base_model, load_tokenizer
from trainers.lora.options import LoraOptions


def merge_adapter(options: LoraOptions, adapter: Path, folder: Path) -> None:
    """Write the model with the adapter added to its weights, and its tokenizer.

    A base that was quantized for training is loaded unquantized: the sum does not fit into 4 bits.

    Args:
        options: Name the base model and its dtype.
        adapter: As a trial saved it.
        folder: Gets safetensors that transformers loads.

    Raises:
        ValueError: The base model cannot be loaded.
    """
    whole = options.model_copy(update={"quantization_bit": None})
    base = load_base_model(whole, "cpu")
    merged = PeftModel.from_pretrained(base.model, str(adapter)).merge_and_unload()
    if hasattr(merged.config, "quantization_config"):  # of a GGUF file; save_pretrained refuses it
        del merged.config.quantization_config
    merged.save_pretrained(folder)
    load_tokenizer(whole).save_pretrained(folder)
