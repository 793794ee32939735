"""The weights of a base model that one trial changes in place, as they were loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Originals:
    """Copies of weights, in the CPU's memory, to put back when the trial leaves."""

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self._weights = dict(weights)
        self._copies = {
            name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        """Return one weight as it was loaded, on the CPU."""
        return self._copies[name]

    @torch.no_grad()
    def restore(self) -> None:
        """Put every weight back, bit by bit."""
        for name, weight in self._weights.items():
            weight.copy_(self._copies[name])

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within this, the weights are as they were loaded; afterwards as they were before."""
        changed = Originals(self._weights)
        self.restore()
        try:
            yield
        finally:
            changed.restore()
