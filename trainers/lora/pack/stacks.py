"""The adapters of all trials side by side: at each adapted layer, their factors in one tensor.

The trials' own weights stay where they are, in float32, for their optimizers; before a pass they are
copied here in the type that the model computes in, and after it the gradients are copied back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from trainers.lora.pack.adapted_layer import AdaptedLayer
from trainers.lora.pack.route import Place, Route

LEAST_RANK = 16
"""Ranks are padded to this times a power of two, whatever the neighbours' are: one product serves
ranks that are near each other, and bits stay the same."""


def padded_rank(rank: int) -> int:
    """Return the rank that a stack has for adapters of this one."""
    padded = LEAST_RANK
    while padded < rank:
        padded *= 2
    return padded


@dataclass(frozen=True)
class Part:
    """One trial's part in a pass: whose adapter serves how many tokens.

    Attributes:
        trial: Its key.
        num_tokens: With padding.
        seed: Of its dropout in this pass; None: nothing is dropped.
    """

    trial: int
    num_tokens: int
    seed: int | None = None


@dataclass
class _Entry:
    """A trial's adapter, and where its copies are.

    Attributes:
        rank: Of the stacks.
        slot: In the stacks.
        scale: alpha / r, or what rsLoRA makes of it.
        dropout: In training.
        own_rank: Without padding.
        layers: Layer -> both of its factors: A, shape (rank, in), and B, shape (out, rank).
        copies: Views of the stacks in the factors' order; made when needed.
    """

    rank: int
    slot: int
    scale: float
    dropout: float
    own_rank: int
    layers: Mapping[AdaptedLayer, tuple[nn.Parameter, nn.Parameter]]
    copies: list[Tensor] | None = None

    @property
    def factors(self) -> list[Tensor]:
        return [factor for factors in self.layers.values() for factor in factors]

    def cut(self, padded: Mapping[AdaptedLayer, tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Return views without the ranks' padding, in the factors' order; zeros where there is none."""
        views: list[Tensor] = []
        for layer, factors in self.layers.items():
            first, second = padded.get(layer) or map(torch.zeros_like, factors)
            if self.own_rank < self.rank:
                first, second = first[: self.own_rank], second[:, : self.own_rank]
            views += (first, second)
        return views


class Stacks:
    """Stacked adapters on one base model. Not thread-safe."""

    def __init__(self, dtype: torch.dtype) -> None:
        """Start with no trial.

        Args:
            dtype: In which the base model computes.
        """
        self._dtype = dtype
        self._entries: dict[int, _Entry] = {}
        self._layers: dict[LoraLayer, AdaptedLayer] = {}
        self._route: Route | None = None

    def __contains__(self, trial: int) -> bool:
        return trial in self._entries

    def add(
        self, trial: int, layers: Mapping[str, LoraLayer], adapter: str, dropout: float
    ) -> None:
        """Give a trial's adapter a place beside the others.

        Args:
            trial: Its key.
            layers: All that it adapts, by name.
            adapter: Its name in them.
            dropout: Share of the adapter's input that is dropped in training.
        """
        first = next(iter(layers.values()))
        rank = padded_rank(first.r[adapter])
        taken = {entry.slot for entry in self._entries.values() if entry.rank == rank}
        slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        factors = {}
        try:
            for name, layer in layers.items():
                adapted = self._adapted(name, layer)
                adapted.present |= {trial}
                pair = (layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)
                adapted.enlarge(rank, slot + 1, pair, self._dtype)
                adapted.clear(rank, slot)
                factors[adapted] = pair
        except Exception:  # as where there is no memory
            self._free(trial, rank)
            raise
        for entry in self._entries.values():
            entry.copies = None  # the stacks may be new ones
        scale = first.scaling[adapter]
        self._entries[trial] = _Entry(rank, slot, scale, dropout, first.r[adapter], factors)

    def remove(self, trial: int) -> None:
        """Free a trial's place, and the memory of places that nobody is behind of."""
        self._free(trial, self._entries.pop(trial).rank)

    @contextlib.contextmanager
    def routed(self, parts: Sequence[Part]) -> Iterator[None]:
        """Let adapted layers serve a pass whose tokens are those of these parts, in order.

        Must last until the backward pass is done.
        """
        places, start = [], 0
        for part in parts:
            entry = self._entries[part.trial]
            dropout = 0.0 if part.seed is None else entry.dropout
            place = Place(
                part.trial,
                entry.rank,
                entry.slot,
                start,
                part.num_tokens,
                entry.scale,
                dropout,
                part.seed or 0,
            )
            places.append(place)
            start += part.num_tokens
            self._load(entry)
        self._route = Route(places)
        try:
            yield
        except BaseException:
            for layer in self._layers.values():
                layer.drop_gradients()
            raise
        finally:
            self._route = None

    def in_order(self, trials: Sequence[int]) -> list[int]:
        """Return trials so that those whose adapters lie side by side are neighbours."""
        return sorted(trials, key=lambda t: (self._entries[t].rank, self._entries[t].slot))

    def take_gradients(self, adds: Mapping[int, bool]) -> None:
        """Set trials' gradients to those of the pass, or add these to them.

        Args:
            adds: Of each trial, whether to add.
        """
        found: dict[int, dict[AdaptedLayer, tuple[Tensor, Tensor]]] = {trial: {} for trial in adds}
        for layer in self._layers.values():
            for trial, first, second in layer.take_gradients():
                found[trial][layer] = first, second
        cuts = {trial: self._entries[trial].cut(of_trial) for trial, of_trial in found.items()}
        # All room is made first: a pass that finds none can be done again, with nothing added twice.
        # None is kept from step to step: beside a pass's activations it would be in the way.
        room = {
            trial: [
                _gradient(factor, cut, add)
                for factor, cut in zip(self._entries[trial].factors, cuts[trial], strict=True)
            ]
            for trial, add in adds.items()
        }
        for trial, add in adds.items():
            if add:
                torch._foreach_add_(room[trial], cuts[trial])
                continue
            torch._foreach_copy_(room[trial], cuts[trial])  # nothing, where one is the other
            for factor, gradient in zip(self._entries[trial].factors, room[trial], strict=True):
                factor.grad = gradient

    def _free(self, trial: int, rank: int) -> None:
        """Leave all layers of a trial that has no entry; it may have come to some of them only."""
        entries = self._entries.values()
        for layer in [layer for layer in self._layers.values() if trial in layer.present]:
            layer.present -= {trial}
            used = [of.slot for of in entries if of.rank == rank and layer in of.layers]
            layer.shrink(rank, max(used, default=-1) + 1)
            if not layer.present:
                layer.restore()
        self._layers = {of: layer for of, layer in self._layers.items() if layer.present}
        for entry in entries:
            entry.copies = None

    @torch.no_grad()
    def _load(self, entry: _Entry) -> None:
        if entry.copies is None:
            slots = {layer: layer.slot(entry.rank, entry.slot) for layer in entry.layers}
            entry.copies = entry.cut(slots)
        torch._foreach_copy_(entry.copies, entry.factors)

    def _adapted(self, name: str, layer: LoraLayer) -> AdaptedLayer:
        if layer not in self._layers:
            self._layers[layer] = AdaptedLayer(name, layer, lambda: self._route)
        return self._layers[layer]


def _gradient(factor: Tensor, cut: Tensor, is_there: bool) -> Tensor:
    """Return a factor's gradient, or room for it: what the pass has found, if that is all its own."""
    if is_there:
        assert factor.grad is not None
        return factor.grad
    if cut.dtype == factor.dtype and cut.untyped_storage().nbytes() == factor.nbytes:
        return cut
    return torch.empty_like(factor)
