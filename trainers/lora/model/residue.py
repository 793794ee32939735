"""What is left of a base model when an adapter's start (PiSSA, OLoRA) has taken its part out.

Holds what is needed to put the base model back, and to convert the trained adapter into one for the
whole base model and back again: W' + BA is W + [B | -B0] [A / A0], as PEFT's
``LoraModel.subtract_mutated_init`` writes it. The start therefore is in the saved adapter itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from trainers.lora.model.originals import Originals

FIRST, SECOND = ".lora_A.weight", ".lora_B.weight"
"""How the names of an adapter's two factors end in its file."""


class Residue:
    """A base model without what an adapter's start took out of it; belongs to one trial."""

    def __init__(self, layers: Mapping[str, LoraLayer]) -> None:
        weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
        self.originals = Originals(weights)
        self._starts: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def take_out(
        self, name: str, layer: LoraLayer, adapter: str, first: Tensor, second: Tensor
    ) -> None:
        """Subtract the start's product from a layer; a function of the factors' bits alone."""
        weight = layer.get_base_layer().weight
        first, second = first.to(weight.device), second.to(weight.device)
        residue_OI = layer_weight(layer) - layer.scaling[adapter] * (second @ first)
        weight.copy_(residue_OI.T if isinstance(layer.get_base_layer(), Conv1D) else residue_OI)
        self._starts[name] = (first.cpu(), second.cpu())

    def convert(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the adapter that does on the whole base model what ``weights`` do on this one."""
        converted = dict(weights)
        for name, (first, second) in self._starts.items():
            trained_first, trained_second = weights[name + FIRST], weights[name + SECOND]
            converted[name + FIRST] = torch.cat([trained_first.detach().cpu(), first])
            converted[name + SECOND] = torch.cat([trained_second.detach().cpu(), -second], dim=1)
        return converted

    def split(
        self,
        tensors: Mapping[str, Tensor],
        layers: Mapping[str, LoraLayer],
        adapter: str,
        where: str,
    ) -> dict[str, Tensor]:
        """Take the start in converted weights out of the base model; return the trained rest.

        Raises:
            ValueError: They are not the conversion of such an adapter.
        """
        rest = dict(tensors)
        for name, layer in layers.items():
            first, second = rest.get(name + FIRST), rest.get(name + SECOND)
            rank = layer.r[adapter]
            if first is None or second is None or len(first) != 2 * rank:
                raise ValueError(
                    f"{where} is an adapter of other options: {name} is not of rank {2 * rank}, "
                    f"to which this start is converted."
                )
            self.take_out(name, layer, adapter, first[rank:], -second[:, rank:])
            rest[name + FIRST], rest[name + SECOND] = first[:rank], second[:, :rank]
        return rest


def layer_weight(layer: LoraLayer) -> Tensor:
    """Return a copy or a view of the weight under an adapter, shape (out, in), float32."""
    base = layer.get_base_layer()
    if isinstance(base, Conv1D):
        return base.weight.detach().T.float()
    if not base.weight.is_floating_point():
        # A quantized layer, whose weights no start here reads: only its shape matters.
        return torch.empty(layer.out_features, layer.in_features)
    return base.weight.detach().float()
