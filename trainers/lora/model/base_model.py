"""Loads the base model and its tokenizer, from a folder, a hub or a GGUF file.

Knows in which form and where to; which of its weights are trained is not decided here.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from trainers.lora.model.processor import multiplies_bfloat16
from trainers.lora.options import ALL_LINEAR, LoraOptions
from trainers.lora.options.method import is_pattern


@dataclass(frozen=True)
class BaseModel:
    """The base model, frozen, as it is before any adapter.

    Attributes:
        model: A causal language model of transformers.
        device: Where token ids go.
        dtype: In which the model computes; its weights are in it too, unless they are all trained.
        linear_shapes: Of every linear layer that may get an adapter: name -> (in, out).
        selects_logits: Whether its forward takes a mask of the positions that need logits.
        notes: What was chosen for the user.
    """

    model: Any
    device: torch.device
    dtype: torch.dtype
    linear_shapes: Mapping[str, tuple[int, int]]
    selects_logits: bool
    notes: tuple[str, ...]

    def targets(self, options: LoraOptions) -> dict[str, tuple[int, int]]:
        """Return the linear layers that a trial adapts, with their shapes.

        Raises:
            ValueError: A target names no linear layer.
        """
        targets = options.target_modules
        if targets == ALL_LINEAR:
            return dict(self.linear_shapes)
        if isinstance(targets, str):
            assert is_pattern(targets), "the options know no other string"
            return self._matched_targets(targets)
        chosen = {}
        for target in targets:
            layers = {
                name: shape
                for name, shape in self.linear_shapes.items()
                if name == target or name.endswith(f".{target}")
            }
            if not layers:
                known = sorted({name.rpartition(".")[2] for name in self.linear_shapes})
                raise ValueError(
                    f"target_modules: {target!r} is no linear layer of this model that can be "
                    f"adapted. Known: {', '.join(known)}; or {ALL_LINEAR} for all of them."
                )
            chosen.update(layers)
        return chosen

    def _matched_targets(self, pattern: str) -> dict[str, tuple[int, int]]:
        matched = {
            name: shape for name, shape in self.linear_shapes.items() if re.fullmatch(pattern, name)
        }
        if not matched:
            raise ValueError(
                f"target_modules: the pattern {pattern!r} matches none of this model's "
                f"{len(self.linear_shapes)} linear layers. It must match whole names, as in "
                f"{next(iter(self.linear_shapes))!r}."
            )
        return matched

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Compute in this model's type where trained weights are in a wider one."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @property
    def uniform_loss(self) -> float:
        """The loss of guessing every token of the vocabulary with the same probability."""
        return math.log(self.model.config.get_text_config().vocab_size)


def load_tokenizer(options: LoraOptions) -> Any:
    """Load the tokenizer that comes with the base model.

    Raises:
        ValueError: There is no such model, or it has no tokenizer.
    """
    return _load(transformers.AutoTokenizer.from_pretrained, options)


def load_base_model(options: LoraOptions, device: str) -> BaseModel:
    """Load the base model onto a device and freeze it.

    Args:
        device: ``cpu``, ``cuda``, or ``auto``: all GPUs that the process sees, else the CPU.

    Raises:
        ValueError: There is no such model, no such device, or the options do not suit the model.
    """
    device_type, device_map = _place(options, device)
    dtype, notes = _choose_dtype(options, device_type)
    # Weights that are trained are float32: an update in bfloat16 is lost where it is small.
    weight_dtype = torch.float32 if options.finetuning_type == "full" else dtype
    arguments: dict[str, object] = {"dtype": weight_dtype, "device_map": device_map}
    if options.attn_implementation is not None:
        arguments["attn_implementation"] = options.attn_implementation
    if options.quantization_bit is not None:
        arguments["quantization_config"] = _quantization(options, dtype)
        if options.quantization_bit == 8:
            # A warning for each layer and batch of a validation, about a cast that is meant to be.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        if options.quantization_bit == 8 and device_type == "cpu":
            notes += ("quantization_bit: 8 is several times slower than 4 on a CPU",)
    model = _load(transformers.AutoModelForCausalLM.from_pretrained, options, **arguments)
    _check_max_length(options, model)
    _keep_4bit_weights_trainable(model)
    model.requires_grad_(False)
    if options.gradient_checkpointing:
        # Not the reentrant kind: it loses the gradients of adapters on frozen inputs.
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    embedding_device = model.get_input_embeddings().weight.device
    return BaseModel(
        model, embedding_device, dtype, _linear_shapes(model), _selects_logits(model), notes
    )


def _load(loader: Any, options: LoraOptions, **arguments: object) -> Any:
    """Call a ``from_pretrained`` for the model that the options name."""
    name = options.model_name_or_path
    folder, gguf_file = _locate(name)
    if gguf_file is not None:
        arguments["gguf_file"] = gguf_file
    elif "device_map" in arguments and not options.trust_remote_code:
        arguments["use_safetensors"] = True  # the older kind of weights is a pickle, which is code
    if options.model_revision is not None:
        arguments["revision"] = options.model_revision
    try:
        return loader(folder, trust_remote_code=options.trust_remote_code, **arguments)
    except MemoryError:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a damaged folder makes its loaders raise anything
        said = str(error).strip() or type(error).__name__
        raise ValueError(
            f"model_name_or_path: {name!r} could not be loaded: {said}\n"
            f"Check the name. A model on the hub needs the network or a filled cache, and a gated "
            f"one 'hf auth login'; a folder needs config.json, weights and tokenizer.json."
            f"{_advice_of_trust(said, folder, options)}"
        ) from error


def _advice_of_trust(said: str, folder: str, options: LoraOptions) -> str:
    """Return what to set where a model was refused because loading it would run its code."""
    if options.trust_remote_code:
        return ""
    if "trust_remote_code" in said:
        return " It brings Python code: if you trust its author, set 'trust_remote_code: true'."
    if any(Path(folder).glob("*.bin")) or "safetensors" in said:
        return (
            " Weights are read from safetensors alone, as .bin files are pickles that can run code: "
            "convert them, or, if you trust their author, set 'trust_remote_code: true'."
        )
    return ""


def _locate(name: str) -> tuple[str, str | None]:
    """Return the folder or hub id, and the GGUF file in it if the name is one."""
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ValueError(
                f"model_name_or_path: the GGUF file {path} does not exist. Download it, and give "
                f"its path."
            )
        return str(path.parent), path.name
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"model_name_or_path: the folder {path} holds no model (no config.json). Give the "
                f"folder that save_pretrained wrote, or a hub id."
            )
        return str(path), None
    if path.exists():
        raise ValueError(f"model_name_or_path: {path} is neither a folder nor a GGUF file (.gguf).")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name:
        raise ValueError(
            f"model_name_or_path: the folder {path} does not exist. Give a folder that holds "
            f"config.json, a hub id as in HuggingFaceTB/SmolLM2-135M-Instruct, or a GGUF file."
        )
    return name, None


def _place(options: LoraOptions, device: str) -> tuple[str, object]:
    """Return the kind of device, and transformers' ``device_map`` for it."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and torch.cuda.device_count() > 1 and options.device_map is None:
            return "cuda", "auto"
    device_type = device.partition(":")[0]
    if device_type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not known. Known: cpu, cuda, auto.")
    if device_type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: torch sees no GPU here. Use cpu or auto.")
    if options.device_map is None:
        return device_type, {"": device}
    if isinstance(options.device_map, dict):
        _check_device_map(options.device_map, device_type)
    elif device_type == "cpu":
        return "cpu", {"": "cpu"}  # auto would take a GPU that this trainer was not given
    return device_type, options.device_map


def _check_device_map(device_map: Mapping[str, int | str], device_type: str) -> None:
    for module, place in device_map.items():
        if (place == "cpu") != (device_type == "cpu"):
            raise ValueError(
                f"device_map: {module!r} is placed on {place!r}, and this trainer is on "
                f"{device_type}. Place all modules on {device_type}, or leave out device_map."
            )


def _choose_dtype(options: LoraOptions, device_type: str) -> tuple[torch.dtype, tuple[str, ...]]:
    if options.dtype != "auto":
        dtype = getattr(torch, options.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype, ()
    if device_type == "cuda":
        in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if in_hardware else torch.float16
    else:
        in_hardware = multiplies_bfloat16()
        dtype = torch.bfloat16 if in_hardware else torch.float32
    name = str(dtype).removeprefix("torch.")
    reason = "computes in bfloat16" if in_hardware else "does not compute in bfloat16"
    return dtype, (f"dtype auto is {name}: this {device_type} device {reason}",)


def _quantization(options: LoraOptions, dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    if options.model_name_or_path.lower().endswith(".gguf"):
        raise ValueError(
            "quantization_bit: a GGUF file cannot be quantised again. Leave quantization_bit out, "
            "or give the model's own folder."
        )
    if options.quantization_bit == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=options.quantization_type,
        bnb_4bit_use_double_quant=options.double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )


def _keep_4bit_weights_trainable(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in the first evaluation on a CPU.

    On CPUs with AVX512-BF16 the repacked weights give wrong gradients in every later training
    step, without an error. Seen in bitsandbytes 0.50.2; can go when its backward pass knows the
    packed layout.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_max_length(options: LoraOptions, model: Any) -> None:
    num_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if num_positions is not None and options.max_length > num_positions:
        raise ValueError(
            f"max_length: {options.max_length} is more than the {num_positions} positions that the "
            f"model knows. Give max_length: {num_positions} or less."
        )


def _linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Return all linear layers but the output layer: name -> (in, out)."""
    output_layer = model.get_output_embeddings()
    shapes = {}
    for name, module in model.named_modules():
        if module is output_layer:
            continue
        if isinstance(module, nn.Linear):
            shapes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (module.weight.shape[0], module.weight.shape[1])
    return shapes


def _selects_logits(model: Any) -> bool:
    """Return whether ``logits_to_keep`` may be a mask, shape (rows, tokens)."""
    # transformers' own models share one function that takes masks; a few, and models that bring
    # their own code, take a number of positions only.
    module = inspect.getmodule(type(model))
    return hasattr(module, "slice_logits_to_keep")
