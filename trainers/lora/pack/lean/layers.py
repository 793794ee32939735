"""Which parts of a model have a lean form, and how these take their places for a pass.

A part has one if its own forward and the lean one give the same bits on a sample: no list of models
is kept here, and a part that computes something else stays as it is.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainers.lora.pack.lean.gate import ACTIVATIONS, Activation, gated, is_gated
from trainers.lora.pack.lean.norm import normed
from trainers.lora.pack.lean.rotary import NAME, Rotate, rotating

Forward = Callable[..., Any]

_ROTATES_LIKE = ["q", "k", "cos", "sin", "unsqueeze_dim"]


class LeanLayers:
    """The lean forwards of a model's parts. The model itself is left as it was."""

    def __init__(self, model: nn.Module) -> None:
        """Find them, before any adapter is in the model.

        Args:
            model: Frozen, of transformers.
        """
        self._forwards: list[tuple[nn.Module, Forward]] = []
        # Layers that are checkpointed keep nothing: what is kept here to make more of would stay.
        are_checkpointed = any(
            getattr(module, "gradient_checkpointing", False) for module in model.modules()
        )
        gates = () if are_checkpointed else (_Gates(),)
        finders = _Norms(are_checkpointed), *gates, _Attentions()
        with torch.no_grad():
            for module in model.modules():
                if "forward" in vars(module):  # somebody else has put one in its place
                    continue
                found = (finder.lean(module) for finder in finders)
                self._forwards += [(module, of) for of in found if of is not None]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute by them; must last until the backward pass is done."""
        for module, forward in self._forwards:
            vars(module)["forward"] = forward
        try:
            yield
        finally:
            for module, _ in self._forwards:
                del vars(module)["forward"]


class _Norms:
    """Those with a weight, as Llama's, or with what is added to 1, as Gemma's."""

    _FACTORS = (lambda weight: weight, lambda weight: 1.0 + weight.float())

    def __init__(self, are_kept: bool) -> None:
        self._are_kept = are_kept
        self._known: dict[object, Callable[[Tensor], Tensor] | None] = {}

    def lean(self, module: nn.Module) -> Forward | None:
        weight = getattr(module, "weight", None)
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not isinstance(weight, Tensor) or weight.ndim != 1 or not isinstance(epsilon, float):
            return None
        if len([*module.parameters(), *module.buffers()]) != 1:
            return None
        key = type(module), weight.dtype, weight.device
        if key not in self._known:
            fitting = (of for of in self._FACTORS if _norms_by(module, weight, of, epsilon))
            self._known[key] = next(fitting, None)
        factor = self._known[key]
        if factor is None:
            return None
        return _norm(module, factor(weight), epsilon, self._are_kept)


def _norms_by(
    module: nn.Module, weight: Tensor, factor: Callable[[Tensor], Tensor], epsilon: float
) -> bool:
    """Try with another weight: its own may be all ones, whose place in the formula cannot be seen."""
    x, other = _sample(weight, 2, len(weight)), _sample(weight, len(weight))
    return _agree(
        lambda: functional_call(module, {"weight": other}, (x,)),
        lambda: normed(x, factor(other), epsilon),
    )


def _norm(module: nn.Module, factor: Tensor, epsilon: float, is_kept: bool) -> Forward:
    def forward(x: Tensor) -> Tensor:
        if x.dtype != module.weight.dtype:
            own: Tensor = type(module).forward(module, x)
            return own
        return normed(x, factor, epsilon, is_kept)

    return forward


class _Gates:
    def __init__(self) -> None:
        self._known: dict[type, Activation | None] = {}

    def lean(self, module: nn.Module) -> Forward | None:
        if not is_gated(module):
            return None
        kind = type(module)
        if kind not in self._known:
            self._known[kind] = self._activation(module)
        activation = self._known[kind]
        return None if activation is None else partial(gated, module, activation)

    def _activation(self, layer: Any) -> Activation | None:
        like = next((of for of in layer.parameters() if of.is_floating_point()), None)
        width = getattr(layer.gate_proj, "in_features", None)
        if like is None or width is None:
            return None
        x = _sample(like, 2, width)
        fitting = (
            of for of in ACTIVATIONS if _agree(lambda: layer(x), partial(gated, layer, of, x))
        )
        return next(fitting, None)


class _Attentions:
    """Attention with our rotary positions: its own forward, which finds them in place of its own."""

    def __init__(self) -> None:
        self._known: dict[type, FunctionType | None] = {}

    def lean(self, module: nn.Module) -> Forward | None:
        kind = type(module)
        if kind not in self._known:
            self._known[kind] = self._copied(kind)
        copied = self._known[kind]
        return None if copied is None else MethodType(copied, module)

    def _copied(self, kind: type[nn.Module]) -> FunctionType | None:
        forward = vars(kind).get("forward")
        if not isinstance(forward, FunctionType) or NAME not in forward.__code__.co_names:
            return None
        own = forward.__globals__.get(NAME)
        if own is None or not _rotates_as_ours(own):
            return None
        names = {**forward.__globals__, NAME: rotating(own)}
        copied = FunctionType(
            forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
        )
        copied.__kwdefaults__ = forward.__kwdefaults__
        return copied


def _rotates_as_ours(own: Rotate) -> bool:
    if list(inspect.signature(own).parameters) != _ROTATES_LIKE:
        return False
    q, k = (_sample(torch.empty(0), 1, heads, 3, 8) for heads in (2, 1))
    angles = [_sample(torch.empty(0), 1, 3, 8) + place for place in (0, 1)]
    return _agree(
        lambda: torch.cat(own(q, k, *angles), 1), lambda: torch.cat(rotating(own)(q, k, *angles), 1)
    )


def _agree(own: Callable[[], Any], lean: Callable[[], Any]) -> bool:
    """Return whether both give the same bits; what cannot be tried so has no lean form."""
    try:
        return bool(own().equal(lean()))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False


def _sample(like: Tensor, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)
