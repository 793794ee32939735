"""All weights of a base model, trained by one trial at a time.

The base model is loaded in float32 for this, and computes in the type that the options name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from trainers.lora.model.base_model import BaseModel
from trainers.lora.model.originals import Originals
from trainers.lora.model.weights import Parameters, check_shares_base, undecayed_parameters
from trainers.lora.options import LoraOptions


class FullWeights:
    """Lends a base model's own weights to a trial, and puts them back when it leaves."""

    stacks = None

    def __init__(self, base: BaseModel, tokenizer: Any) -> None:
        self._base = base
        self._tokenizer = tokenizer
        self._originals: dict[int, Originals] = {}
        self._options: dict[int, LoraOptions] = {}
        self._is_visited = False

    def num_parameters(self, options: LoraOptions) -> int:
        return sum(weight.numel() for weight in self._base.model.parameters())

    def add(self, trial: int, options: LoraOptions, saved: Path | None = None) -> Parameters:
        check_shares_base(options, () if self._is_visited else self._options.values())
        weights = None if saved is None else self._read(saved)
        parameters = Parameters(self._base.model.named_parameters())  # tied ones come once
        undecayed = undecayed_parameters(self._base.model)
        parameters.undecayed = frozenset(
            name for name, weight in parameters.items() if id(weight) in undecayed
        )
        self._originals[trial], self._options[trial] = Originals(parameters), options
        if weights is not None:
            with torch.no_grad():
                for name, weight in parameters.items():
                    weight.copy_(weights[name])
        return parameters

    def activate(self, trial: int) -> None:
        assert trial in self._options
        self._base.model.requires_grad_(True)

    def remove(self, trial: int) -> None:
        del self._options[trial]
        self._originals.pop(trial).restore()
        self._base.model.requires_grad_(False)
        if not self._options:
            self._base.model.zero_grad(set_to_none=True)

    def save(self, trial: int, folder: Path) -> None:
        assert trial in self._options
        save_model(self._base.model, self._tokenizer, folder)

    @contextlib.contextmanager
    def visited(self) -> Iterator[None]:
        self._is_visited = True
        try:
            with contextlib.ExitStack() as stack:
                for originals in self._originals.values():
                    stack.enter_context(originals.swapped_in())
                yield
        finally:
            self._is_visited = False

    def _read(self, folder: Path) -> dict[str, torch.Tensor]:
        """Read saved weights the way that their owner will, which undoes renamings.

        Raises:
            ValueError: The folder is cut off, or holds another model.
        """
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no model (no config.json), so it is cut off.")
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        except Exception as error:  # safetensors, JSON and shape errors share no class
            raise ValueError(f"{folder} is missing weights or cut off ({error}).") from error
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        here = {name: weight.shape for name, weight in self._base.model.named_parameters()}
        if {name: weight.shape for name, weight in weights.items()} != here:
            raise ValueError(f"{folder} holds another model than the trials of this trainer train.")
        return weights


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a whole model and its tokenizer, without pickles, as transformers loads them."""
    if hasattr(model.config, "quantization_config"):  # of a GGUF file; save_pretrained refuses it
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)  # in tokenizer_config.json instead
