"""Full weights from a base model and what a trial trained: what serves without PEFT."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

from trainers.lora.model.base_model import load_base_model, load_tokenizer
from trainers.lora.model.full_weights import save_model
from trainers.lora.options import LoraOptions


def merge_adapter(options: LoraOptions, adapter: Path, folder: Path) -> None:
    """Write the model with the adapter added to its weights, and its tokenizer.

    A base that was quantized for training is loaded unquantized: the sum does not fit into 4 bits.
    Fully trained weights are whole already, and are written in the type that the options name.

    Args:
        options: Name the base model and its dtype.
        adapter: As a trial saved it.
        folder: Gets safetensors that transformers loads.

    Raises:
        ValueError: The base model cannot be loaded.
    """
    changes: dict[str, object] = {"quantization_bit": None, "device_map": None}
    if options.finetuning_type == "full":
        trained = {"model_name_or_path": str(adapter), "model_revision": None}
        changes |= {**trained, "finetuning_type": "lora"}  # loads in dtype, not in float32
    whole = options.model_copy(update=changes)
    model = load_base_model(whole, "cpu").model
    if options.finetuning_type == "lora":
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    save_model(model, load_tokenizer(whole), folder)
