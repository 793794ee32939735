"""PEFT's layers around a base model's linear ones, into which plain adapters are put one by one.

PEFT's own ``add_adapter`` walks over the whole model several times for each adapter, a large part of a
second on 200 layers. The layers are the same for all plain adapters, so they are made once and stay; an
adapter is an entry in each of those that it adapts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from trainers.lora.model.base_model import BaseModel

PREFIX = "base_model.model."
"""What PEFT puts before a layer's name in the names of its weights."""


class Frame:
    """Holds plain adapters by name.

    Attributes:
        peft: The base model within its layers; None before the first adapter.
        layers: By name in the base model.
    """

    def __init__(self, base: BaseModel) -> None:
        self.peft: PeftModel | None = None
        self.layers: dict[str, LoraLayer] = {}
        self._base = base
        self._num_dormant = 0
        self._is_idle = True

    def put(self, adapter: str, config: LoraConfig, targets: Sequence[str]) -> None:
        """Add an adapter whose weights are yet to be set, in float32."""
        missing = [name for name in targets if name not in self.layers]
        if missing:
            self._grow(missing)
        try:
            for name in targets:
                _put_into(self.layers[name], adapter, config)
        except Exception:  # as where there is no memory
            self.take_out(adapter, targets)
            raise

    def take_out(self, adapter: str, targets: Sequence[str]) -> None:
        """Remove an adapter."""
        self.activate(None)  # PEFT would make another one active
        for name in targets:
            layer = self.layers[name]
            layer.delete_adapter(adapter)
            # PEFT 0.21 leaves these behind; here layers outlive their adapters.
            for table in (layer.use_rslora, layer.use_dora, layer.lora_bias):
                table.pop(adapter, None)

    def activate(self, adapter: str | None) -> None:
        """Let the model compute with this adapter, or with none."""
        if adapter is None and self._is_idle:
            return
        for layer in self.layers.values():
            layer.set_adapter([] if adapter is None else [adapter])
        self._is_idle = adapter is None

    def weights(self, adapter: str, targets: Sequence[str]) -> dict[str, nn.Parameter]:
        """Return an adapter's weights by the names that PEFT saves them under."""
        found = {}
        for name in targets:
            layer = self.layers[name]
            found[f"{PREFIX}{name}.lora_A.weight"] = layer.lora_A[adapter].weight
            found[f"{PREFIX}{name}.lora_B.weight"] = layer.lora_B[adapter].weight
        return found

    def _grow(self, names: Sequence[str]) -> None:
        """Put layers around further ones, by an adapter of rank 1 that is never active."""
        config = LoraConfig(r=1, target_modules=list(names), task_type="CAUSAL_LM")
        adapter = f"dormant{self._num_dormant}"
        with torch.random.fork_rng(devices=[]):  # PEFT draws a start
            if self.peft is None:
                self.peft = PeftModel(self._base.model, config, adapter_name=adapter)
            else:
                self.peft.add_adapter(adapter, config)
        self._num_dormant += 1
        modules = dict(self._base.model.named_modules())
        for name in names:
            layer = modules[name]
            assert isinstance(layer, LoraLayer), name
            self.layers[name] = layer
        self._is_idle = False  # PEFT activates what it makes
        self.activate(None)

    def close(self) -> None:
        """Give the base model its own layers back; no adapter may be left."""
        if self.peft is not None:
            self.peft.unload()


class _Factor(nn.Linear):
    """A linear layer whose weights are not drawn when it is made."""

    def reset_parameters(self) -> None:
        """Leave them to whoever makes it."""


def _put_into(layer: LoraLayer, adapter: str, config: LoraConfig) -> None:
    """Do what ``LoraLayer.update_layer`` does for a plain adapter, but draw and move nothing.

    It takes a millisecond for each layer (PEFT 0.21), and this a tenth.
    """
    rank = config.r
    device = layer.get_base_layer().weight.device
    layer.r[adapter] = rank
    layer.lora_alpha[adapter] = config.lora_alpha
    layer.scaling[adapter] = config.lora_alpha / (math.sqrt(rank) if config.use_rslora else rank)
    layer.use_rslora[adapter] = config.use_rslora
    layer.use_dora[adapter] = layer.lora_bias[adapter] = False
    dropout = config.lora_dropout
    layer.lora_dropout[adapter] = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
    of_factors = {"bias": False, "device": device, "dtype": torch.float32}
    layer.lora_A[adapter] = _Factor(layer.in_features, rank, **of_factors)
    layer.lora_B[adapter] = _Factor(rank, layer.out_features, **of_factors)
