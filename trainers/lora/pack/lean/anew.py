"""What goes into adapted layers, made again on the way back in place of being kept.

An adapter's gradient needs its layer's input. Where that is a norm's output, or a gated layer's product,
what it was made of is kept anyway, and to make it takes far less time than a layer does.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

_NAME = "hpo_made_by"


class Anew:
    """How a tensor is made. It is made once for all layers that need it, and goes with the last."""

    def __init__(self, tensor: Tensor, make: Callable[[], Tensor]) -> None:
        """Let layers that ``tensor`` goes into find this.

        Args:
            tensor: As it is now.
            make: Returns one of the same bits.
        """
        self._make: Callable[[], Tensor] | None = make
        self._version = tensor._version
        self._made: Tensor | None = None
        self._num_users = 0
        setattr(tensor, _NAME, self)

    @staticmethod
    def of(tensor: Tensor) -> Anew | None:
        """Return how a tensor is made, for one user more; None if it has to be kept."""
        anew: Anew | None = getattr(tensor, _NAME, None)
        if anew is None or anew._version != tensor._version:
            return None
        anew._num_users += 1
        return anew

    def take(self) -> Tensor:
        """Return the tensor to one of its users, which needs it no more afterwards."""
        if self._made is None:
            assert self._make is not None
            self._made = self._make()
        made = self._made
        self._num_users -= 1
        if self._num_users == 0:
            self._make = self._made = None
        return made
