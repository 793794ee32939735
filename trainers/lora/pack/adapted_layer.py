"""One layer of the base model with the adapters of several trials.

The layer's own output is computed once for all tokens; then each run of trials adds its part by two
batched products, and going back its gradients are four more. Nothing is looped over adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from trainers.lora.pack.route import Place, Route, Run
from trainers.lora.seeds import derive_seed

_Pair = tuple[Tensor, Tensor]


class AdaptedLayer:
    """Takes the place of a PEFT layer's forward while a pass is routed.

    Attributes:
        name: In the model.
        present: Trials that adapt this layer.
    """

    def __init__(self, name: str, layer: LoraLayer, route: Callable[[], Route | None]) -> None:
        """Put this in front of a layer's own forward."""
        self.name = name
        self.present: frozenset[int] = frozenset()
        self._layer = layer
        self._route = route
        self._plain = layer.forward
        self._weights: dict[int, _Pair] = {}
        self._gradients: dict[int, _Pair] = {}
        self._has_gradients_of: dict[int, Route] = {}
        layer.forward = self._forward

    def restore(self) -> None:
        """Give the layer its own forward back."""
        del self._layer.forward

    def weights(self, rank: int) -> _Pair:
        """Return the stacks of A, shape (slots, rank, in), and B, shape (slots, out, rank)."""
        return self._weights[rank]

    def gradients(self, rank: int) -> _Pair:
        """Return the stacks of their gradients; of the newest pass, of those that were in it."""
        if rank not in self._gradients:
            first, second = self._weights[rank]
            self._gradients[rank] = (torch.zeros_like(first), torch.zeros_like(second))
        return self._gradients[rank]

    def enlarge(self, rank: int, slots: int, factors: _Pair, dtype: torch.dtype) -> None:
        """Have room for so many adapters of a rank; what was in the stacks is gone if that grows.

        Args:
            rank: With padding.
            slots: As many at least.
            factors: One adapter's A, shape (own rank, in), and B, shape (out, own rank).
            dtype: Of new stacks.
        """
        if rank in self._weights and len(self._weights[rank][0]) >= slots:
            return
        first, second = factors
        self._weights[rank] = (
            torch.zeros(slots, rank, first.shape[1], dtype=dtype, device=first.device),
            torch.zeros(slots, second.shape[0], rank, dtype=dtype, device=second.device),
        )
        self._gradients.pop(rank, None)

    def shrink(self, rank: int, slots: int) -> None:
        """Have room for no more than so many adapters of a rank."""
        if rank not in self._weights:
            return
        first, second = self._weights[rank]
        if slots == 0:
            del self._weights[rank]
        elif slots < len(first):
            self._weights[rank] = (first[:slots].clone(), second[:slots].clone())
        else:
            return
        self._gradients.pop(rank, None)

    def clear(self, rank: int, slot: int) -> None:
        """Empty a place, also of what a smaller adapter would leave as it is."""
        for stack in self._weights[rank]:
            stack[slot].zero_()

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        route = self._route()
        if route is None:
            return self._plain(x, *args, **kwargs)
        output = self._layer.base_layer(x, *args, **kwargs)
        if not route.runs(self.present, output.device):
            return output
        # Added to in place, so it must be this pass's own. What bitsandbytes gives may be a view.
        output = output.clone() if output._is_view() else output.contiguous()
        return _AddAdapters.apply(x, output, route.tie, self, route)

    def takes_first(self, rank: int, route: Route) -> bool:
        """Return whether no gradient of this pass is here yet; a layer may be used twice in it."""
        is_first = self._has_gradients_of.get(rank) is not route
        self._has_gradients_of[rank] = route
        return is_first


class _AddAdapters(torch.autograd.Function):
    """output + scale * dropout(x) A^T B^T, with each token's own A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, output: Tensor, tie: Tensor, layer: AdaptedLayer, route: Route
    ) -> Tensor:
        x_TI, output_TO = _flat(x), output.view(-1, output.shape[-1])
        saved: list[Tensor] = []
        for run in route.runs(layer.present, output.device):
            first_SRI, second_SOR = (stack[run.slots] for stack in layer.weights(run.rank))
            x_STI = run.cut(x_TI).to(first_SRI.dtype)
            if run.drops:
                mask_STI = _draw(run, x_STI, layer.name)
                x_STI = x_STI * mask_STI
                saved.append(mask_STI)
            inner_STR = torch.bmm(x_STI, first_SRI.mT).mul_(run.scale)
            saved.append(inner_STR)
            part_STO = run.cut(output_TO)
            if output.dtype == inner_STR.dtype:
                part_STO.baddbmm_(inner_STR, second_SOR.mT)
            else:
                part_STO.add_(torch.bmm(inner_STR, second_SOR.mT))
        ctx.mark_dirty(output)
        ctx.save_for_backward(x, *saved)
        ctx.layer, ctx.route = layer, route
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_TO = _flat(gradients[0])
        x, *rest = ctx.saved_tensors
        saved = iter(rest)
        layer: AdaptedLayer = ctx.layer
        x_TI = _flat(x)
        x_gradient_TI = torch.zeros_like(x_TI) if ctx.needs_input_grad[0] else None
        firsts: dict[int, bool] = {}
        for run in ctx.route.runs(layer.present, gradient_TO.device):
            first_SRI, second_SOR = (stack[run.slots] for stack in layer.weights(run.rank))
            first_grad_SRI, second_grad_SOR = (
                stack[run.slots] for stack in layer.gradients(run.rank)
            )
            gradient_STO = run.cut(gradient_TO).to(first_SRI.dtype)
            x_STI = run.cut(x_TI).to(first_SRI.dtype)
            mask_STI = next(saved) if run.drops else None
            if mask_STI is not None:
                x_STI = x_STI * mask_STI
            inner_STR = next(saved)
            inner_grad_STR = torch.bmm(gradient_STO, second_SOR).mul_(run.scale)
            if run.rank not in firsts:
                firsts[run.rank] = layer.takes_first(run.rank, ctx.route)
            keep = 0 if firsts[run.rank] else 1
            torch.baddbmm(first_grad_SRI, inner_grad_STR.mT, x_STI, beta=keep, out=first_grad_SRI)
            torch.baddbmm(
                second_grad_SOR, gradient_STO.mT, inner_STR, beta=keep, out=second_grad_SOR
            )
            if x_gradient_TI is None:
                continue
            part_STI = run.cut(x_gradient_TI)
            if mask_STI is None and part_STI.dtype == first_SRI.dtype:
                torch.bmm(inner_grad_STR, first_SRI, out=part_STI)
            else:
                found_STI = torch.bmm(inner_grad_STR, first_SRI)
                part_STI.copy_(found_STI if mask_STI is None else found_STI.mul_(mask_STI))
        x_gradient = None if x_gradient_TI is None else x_gradient_TI.view(x.shape)
        return x_gradient, gradients[0], None, None, None


def _flat(states: Tensor) -> Tensor:
    return states.reshape(-1, states.shape[-1])


def _draw(run: Run, x_STI: Tensor, name: str) -> Tensor:
    """Return what the trials' inputs are multiplied by: 0 where dropped, 1 / (1 - share) elsewhere.

    Drawn from a stream of each trial, layer and pass, so that neighbours change nothing, and
    checkpointed layers draw the same again going back.
    """
    mask_STI = torch.ones_like(x_STI)
    for place, mask_TI in zip(run.places, mask_STI, strict=True):
        if place.dropout > 0:
            mask_TI.bernoulli_(1 - place.dropout, generator=_generator(place, name, x_STI.device))
            mask_TI.div_(1 - place.dropout)
    return mask_STI


def _generator(place: Place, name: str, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(derive_seed(place.seed, name))
