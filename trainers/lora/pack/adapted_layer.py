"""One layer of the base model with the adapters of several trials.

The layer's own output is computed once for all tokens; then each run of trials adds its part by two
batched products, and going back its gradients are four more. Nothing is looped over adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from trainers.lora.pack.lean.anew import Anew
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
        self._views: dict[object, _RunStacks] = {}
        self._gradients: dict[object, tuple[Run, Tensor, Tensor]] = {}
        layer.forward = self._forward

    def restore(self) -> None:
        """Give the layer its own forward back."""
        del self._layer.forward

    def weights(self, rank: int) -> _Pair:
        """Return the stacks of A, shape (slots, rank, in), and B, shape (slots, out, rank)."""
        return self._weights[rank]

    def slot(self, rank: int, number: int) -> _Pair:
        """Return one place of the stacks: A, shape (rank, in), and B, shape (out, rank)."""
        first, second = self._weights[rank]
        return first[number], second[number]

    def take_gradients(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield those of the pass that was just made: of each trial its key, A's and B's, padded."""
        for run, first, second in self._gradients.values():
            trials = (place.trial for place in run.places)
            yield from zip(trials, first.unbind(), second.unbind(), strict=True)
        self._gradients.clear()

    def drop_gradients(self) -> None:
        """Drop those of a pass that has failed."""
        self._gradients.clear()

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
        self._views.clear()

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
        self._views.clear()

    def clear(self, rank: int, slot: int) -> None:
        """Empty a place, also of what a smaller adapter would leave as it is."""
        for stack in self._weights[rank]:
            stack[slot].zero_()

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        route = self._route()
        if route is None:
            return self._plain(x, *args, **kwargs)
        base = self._layer.base_layer
        if not route.runs(self.present, x.device):
            return base(x, *args, **kwargs)
        if _is_plain(base):
            return _AdaptedLinear.apply(x, route.tie, base, self, route)
        output = base(x, *args, **kwargs)
        # Added to in place, so it must be this pass's own. What bitsandbytes gives may be a view.
        output = output.clone() if output._is_view() else output.contiguous()
        return _AddAdapters.apply(x, output, route.tie, self, route)

    def add(self, route: Route, x_TI: Tensor, output_TO: Tensor) -> list[Tensor]:
        """Add each trial's part to the output of its tokens; return what going back needs."""
        saved: list[Tensor] = []
        for run in route.runs(self.present, output_TO.device):
            stacks = self._stacks_of(run)
            x_STI = run.cut(x_TI).to(stacks.first.dtype)
            if run.drops:
                mask_STI = _draw(run, x_STI, self.name)
                x_STI = x_STI * mask_STI
                saved.append(mask_STI)
            inner_STR = run.scaled(x_STI, stacks.first_turned)
            saved.append(inner_STR)
            part_STO = run.cut(output_TO)
            if part_STO.dtype == inner_STR.dtype:
                part_STO.baddbmm_(inner_STR, stacks.second_turned)
            else:
                part_STO.add_(torch.bmm(inner_STR, stacks.second_turned))
        return saved

    def go_back(
        self,
        route: Route,
        x_TI: Tensor,
        gradient_TO: Tensor,
        saved: Sequence[Tensor],
        x_gradient_TI: Tensor | None,
    ) -> None:
        """Leave the factors' gradients for ``take_gradients``, and add to the input's if wanted."""
        left = iter(saved)
        for run in route.runs(self.present, gradient_TO.device):
            stacks = self._stacks_of(run)
            dtype = stacks.first.dtype
            gradient_STO = run.cut(gradient_TO).to(dtype)
            x_STI = run.cut(x_TI).to(dtype)
            mask_STI = next(left) if run.drops else None
            if mask_STI is not None:
                x_STI = x_STI * mask_STI
            inner_STR = next(left)
            inner_grad_STR = run.scaled(gradient_STO, stacks.second)
            if run.key not in self._gradients:
                of_first = torch.bmm(inner_grad_STR.mT, x_STI)
                of_second = torch.bmm(gradient_STO.mT, inner_STR)
                self._gradients[run.key] = (run, of_first, of_second)
            else:  # the layer is used twice in a pass
                _, of_first, of_second = self._gradients[run.key]
                of_first.baddbmm_(inner_grad_STR.mT, x_STI)
                of_second.baddbmm_(gradient_STO.mT, inner_STR)
            if x_gradient_TI is None:
                continue
            part_STI = run.cut(x_gradient_TI)
            if mask_STI is None and part_STI.dtype == dtype:
                part_STI.baddbmm_(inner_grad_STR, stacks.first)
            else:
                found_STI = torch.bmm(inner_grad_STR, stacks.first)
                part_STI.add_(found_STI if mask_STI is None else found_STI.mul_(mask_STI))

    def _stacks_of(self, run: Run) -> _RunStacks:
        if run.key not in self._views:
            first, second = (stack[run.slots] for stack in self.weights(run.rank))
            self._views[run.key] = _RunStacks(first, first.mT, second, second.mT)
        return self._views[run.key]


@dataclass(frozen=True)
class _RunStacks:
    """Views of the stacks for one run, made once: there are thousands of uses in a pass.

    Attributes:
        first: A, shape (trials, rank, in).
        first_turned: Shape (trials, in, rank).
        second: B, shape (trials, out, rank).
        second_turned: Shape (trials, rank, out).
    """

    first: Tensor
    first_turned: Tensor
    second: Tensor
    second_turned: Tensor


class _AdaptedLinear(torch.autograd.Function):
    """x W^T + b + scale * dropout(x) A^T B^T, with each token's own A and B, for a frozen W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tie: Tensor, base: nn.Linear, layer: AdaptedLayer, route: Route
    ) -> Tensor:
        output: Tensor = functional.linear(x, base.weight, base.bias)
        saved = layer.add(route, _flat(x), _flat(output))
        _keep(ctx, x, saved)
        ctx.base, ctx.layer, ctx.route = base, layer, route
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, saved = _kept(ctx)
        gradient_TO = _flat(gradients[0])
        x_gradient_TI = gradient_TO @ ctx.base.weight if ctx.needs_input_grad[0] else None
        ctx.layer.go_back(ctx.route, _flat(x), gradient_TO, saved, x_gradient_TI)
        x_gradient = None if x_gradient_TI is None else x_gradient_TI.view(x.shape)
        return x_gradient, None, None, None, None


class _AddAdapters(torch.autograd.Function):
    """output + scale * dropout(x) A^T B^T, with each token's own A and B, for any other layer."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, output: Tensor, tie: Tensor, layer: AdaptedLayer, route: Route
    ) -> Tensor:
        saved = layer.add(route, _flat(x), output.view(-1, output.shape[-1]))
        ctx.mark_dirty(output)
        _keep(ctx, x, saved)
        ctx.layer, ctx.route = layer, route
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, saved = _kept(ctx)
        x_gradient = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        x_gradient_TI = None if x_gradient is None else x_gradient.view(-1, x.shape[-1])
        ctx.layer.go_back(ctx.route, _flat(x), _flat(gradients[0]), saved, x_gradient_TI)
        return x_gradient, gradients[0], None, None, None


def _keep(ctx: Any, x: Tensor, saved: Sequence[Tensor]) -> None:
    """Keep what going back needs, and of a layer's input maybe only how it is made."""
    ctx.x_anew = Anew.of(x)
    ctx.save_for_backward(*(() if ctx.x_anew else (x,)), *saved)


def _kept(ctx: Any) -> tuple[Tensor, Sequence[Tensor]]:
    if ctx.x_anew is None:
        x, *saved = ctx.saved_tensors
        return x, saved
    x, ctx.x_anew = ctx.x_anew.take(), None
    return x, ctx.saved_tensors


def _is_plain(base: nn.Module) -> bool:
    """Return whether a layer is a matrix product and no more: neither quantized nor hooked."""
    return (
        type(base) is nn.Linear
        and "forward" not in vars(base)
        and not base._forward_hooks
        and not base._forward_pre_hooks
    )


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
