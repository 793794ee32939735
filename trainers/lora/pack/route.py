"""Which tokens of a pass belong to which trial's adapter, at every adapted layer.

Neighbouring trials whose stacked adapters lie side by side and that have equally many tokens form a
run: one batched product serves them all. A product over one trial and its part of a product over
several are the same bits, so that who the neighbours are changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """A trial's part in a pass.

    Attributes:
        trial: Its key.
        rank: Of the stacks that hold its adapter.
        slot: Its place in them.
        start: Its first token.
        num_tokens: With padding.
        scale: What its adapter's output is multiplied by.
        dropout: Share of the adapter's input that is dropped; 0 in evaluation.
        seed: Of what is drawn in this pass.
    """

    trial: int
    rank: int
    slot: int
    start: int
    num_tokens: int
    scale: float
    dropout: float
    seed: int

    def is_before(self, other: Place) -> bool:
        """Return whether one product may serve both, ``other`` right behind this one."""
        return (
            self.rank == other.rank
            and self.slot + 1 == other.slot
            and self.start + self.num_tokens == other.start
            and self.num_tokens == other.num_tokens
        )


@dataclass(frozen=True)
class Run:
    """Trials that one batched product serves.

    Attributes:
        places: In the order of their tokens and of their slots.
        device: Of the tokens.
    """

    places: tuple[Place, ...]
    device: torch.device

    @cached_property
    def key(self) -> tuple[int, int, int]:
        """Rank of the stacks that hold their adapters, first place in these, and end of the places."""
        return self.rank, self.places[0].slot, self.places[-1].slot + 1

    @cached_property
    def scale(self) -> Tensor:
        """Of each, shape (trials, 1, 1), float32."""
        return torch.tensor([p.scale for p in self.places], device=self.device).view(-1, 1, 1)

    @cached_property
    def common_scale(self) -> float | None:
        """Of all of them, if it is a power of two, else None.

        So whether it multiplies a product within it or afterwards, the bits are the same.
        """
        first, *others = {place.scale for place in self.places}
        return None if others or abs(math.frexp(first)[0]) != 0.5 else first

    @property
    def rank(self) -> int:
        return self.places[0].rank

    @property
    def slots(self) -> slice:
        return slice(*self.key[1:])

    def scaled(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the batched product of two tensors, times the scales."""
        if self.common_scale is None:
            return torch.bmm(one, other).mul_(self.scale)
        product = one.new_empty(len(one), one.shape[1], other.shape[2])
        return product.baddbmm_(one, other, beta=0, alpha=self.common_scale)

    def cut(self, states_TD: Tensor) -> Tensor:
        """Return a view of these trials' tokens, shape (trials, tokens, dimensions)."""
        first, count = self.places[0], len(self.places)
        num_tokens = count * first.num_tokens
        if num_tokens < len(states_TD):
            states_TD = states_TD.narrow(0, first.start, num_tokens)
        return states_TD.view(count, first.num_tokens, -1)

    @property
    def drops(self) -> bool:
        return any(place.dropout > 0 for place in self.places)


@dataclass
class Route:
    """All parts of one pass.

    Attributes:
        places: In the order of their tokens.
        tie: A number that asks for gradients, so that adapted layers are part of the backward pass
            also where nothing before them is trained.
    """

    places: Sequence[Place]
    tie: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))
    _runs: dict[object, tuple[Run, ...]] = field(default_factory=dict)

    def runs(self, present: frozenset[int], device: torch.device) -> tuple[Run, ...]:
        """Return the runs of a layer that these trials adapt."""
        key = (present, device)
        if key not in self._runs:
            places = [place for place in self.places if place.trial in present]
            self._runs[key] = tuple(Run(tuple(run), device) for run in _chains(places))
        return self._runs[key]


def _chains(places: Sequence[Place]) -> list[list[Place]]:
    if not places:
        return []
    chains = [[places[0]]]
    for before, place in pairwise(places):
        if before.is_before(place):
            chains[-1].append(place)
        else:
            chains.append([place])
    return chains
