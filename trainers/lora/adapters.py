"""The adapters of several trials on one base model, one of them active at a time.

Wraps PEFT. Adapter weights are float32 whatever the base model's type, and start from the trial's
own seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import nn

from trainers.lora.base_model import BaseModel
from trainers.lora.options import ALL_LINEAR, LoraOptions
from trainers.lora.seeds import derive_seed

Parameters = dict[str, nn.Parameter]
"""An adapter's weights, by the names that PEFT gives them in ``adapter_model.safetensors``."""


class AdapterPool:
    """Adds adapters to a base model and removes them again."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._peft: PeftModel | None = None

    def add(self, trial: int, options: LoraOptions) -> Parameters:
        """Add a trial's adapter at its beginning; return its weights.

        Raises:
            ValueError: The options name layers that the model does not have.
        """
        num_targets = len(self._base.targets(options))
        name = _name(trial)
        config = self.config(options)
        with torch.random.fork_rng(
            devices=[]
        ):  # PEFT draws a start of its own, which is replaced below
            if self._peft is None:
                self._peft = PeftModel(self._base.model, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)
        parameters = _parameters_of(self._peft, name)
        assert len(parameters) == 2 * num_targets, "PEFT matched other layers than targets()"
        assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
        _initialise(parameters, derive_seed(options.seed, "init"))
        return parameters

    def activate(self, trial: int) -> None:
        """Make this trial's adapter the one that the model computes with, and the trainable one."""
        assert self._peft is not None
        # set_adapter freezes all other adapters: right here, as passes run one trial at a time.
        self._peft.set_adapter(_name(trial))

    def remove(self, trial: int) -> None:
        """Remove a trial's adapter; the base model and the other adapters are as before."""
        assert self._peft is not None
        if len(self._peft.peft_config) == 1:
            # PEFT is left with no active adapter otherwise, which later calls do not expect.
            self._peft.unload()
            self._peft = None
        else:
            other = next(name for name in self._peft.peft_config if name != _name(trial))
            self._peft.set_adapter(other)  # PEFT warns when the active adapter is deleted
            self._peft.delete_adapter(_name(trial))

    def config(self, options: LoraOptions) -> LoraConfig:
        """Return PEFT's config for a trial, as it is written next to its weights."""
        if options.target_modules == ALL_LINEAR:
            targets = _shortest_names(self._base.linear_shapes)
        else:
            targets = list(options.target_modules)
        return LoraConfig(
            r=options.lora_r,
            lora_alpha=options.alpha,
            lora_dropout=options.lora_dropout,
            use_rslora=options.use_rslora,
            target_modules=targets,
            bias="none",
            task_type="CAUSAL_LM",
            base_model_name_or_path=options.model_name_or_path,
            revision=options.model_revision,
        )


def _shortest_names(layers: Iterable[str]) -> list[str]:
    """Return the layers' last names, as in ``q_proj``; whole names where the last is a number."""
    names = {
        name if name.rpartition(".")[2].isdigit() else name.rpartition(".")[2] for name in layers
    }
    return sorted(names)


def _name(trial: int) -> str:
    return f"trial{trial}"


def _parameters_of(model: nn.Module, name: str) -> Parameters:
    ending = f".{name}.weight"
    return {
        f"{full_name.removesuffix(ending)}.weight": parameter
        for full_name, parameter in model.named_parameters()
        if full_name.endswith(ending)
    }


@torch.no_grad()
def _initialise(parameters: Parameters, seed: int) -> None:
    """Draw A as PEFT does (Kaiming, uniform) and set B to zero, from one seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters.items():
        if ".lora_A." in name:
            start = torch.empty(parameter.shape)
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            parameter.copy_(start)
        else:
            parameter.zero_()


def load_weights(parameters: Parameters, weights: dict[str, Any]) -> None:
    """Set an adapter's weights from a saved file's tensors, which must be the same by name."""
    assert parameters.keys() == weights.keys(), "a saved trial's options are compared before"
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
