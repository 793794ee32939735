"""What a trial trains, whichever way: weights by name, added to a base model and taken away again.

``adapters`` and ``full_weights`` are the two ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainers.lora.options import LoraOptions
from trainers.lora.pack.stacks import Stacks


class Parameters(dict[str, nn.Parameter]):
    """A trial's weights, by the names that they have in its saved file.

    Attributes:
        undecayed: Names of those that no weight decay is for: biases and norms.
    """

    undecayed: frozenset[str] = frozenset()


class WeightPool(Protocol):
    """Adds the weights of trials to a base model and removes them again."""

    @property
    def stacks(self) -> Stacks | None:
        """The weights that can share a pass with other trials'; None where none can."""
        ...

    def num_parameters(self, options: LoraOptions) -> int:
        """Return how many numbers a trial trains.

        Raises:
            ValueError: The options name layers that the model does not have.
        """
        ...

    def add(self, trial: int, options: LoraOptions, saved: Path | None = None) -> Parameters:
        """Add a trial's weights at their beginning, or as they were saved.

        Raises:
            ValueError: The options do not suit the model or the trials present, or the saved
                folder is cut off or of other options.
        """
        ...

    def activate(self, trial: int) -> None:
        """Let the model compute with this trial's weights, and train these only."""
        ...

    def remove(self, trial: int) -> None:
        """Remove a trial's weights; the base model and the other trials are as before."""
        ...

    def save(self, trial: int, folder: Path) -> None:
        """Write a trial's weights the way that plain PEFT or transformers loads them."""
        ...

    def visited(self) -> AbstractContextManager[None]:
        """Within this, the base model is as it was loaded, and one visitor may be added."""
        ...


def check_shares_base(options: LoraOptions, present: Iterable[LoraOptions]) -> None:
    """Refuse a trial that cannot be on one base model with those present.

    Raises:
        ValueError: It, or one of them, needs the base model for itself.
    """
    others = list(present)
    reasons = [other.sharing_problem() for other in (options, *others)]
    reason = next((found for found in reasons if found is not None), None)
    if others and reason is not None:
        raise ValueError(
            f"{reason}, so such a trial must be alone on its base model, and another one is present. "
            f"Give each trial a GPU of its own: 'resources: {{gpu: 1}}'."
        )


# The patterns of transformers.Trainer.get_decay_parameter_names, 5.23.
_UNDECAYED = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")


def is_undecayed(name: str) -> bool:
    """Return whether transformers leaves a linear layer's weight out of weight decay, by its name."""
    return any(re.search(pattern, name.lower()) for pattern in _UNDECAYED)


def undecayed_parameters(model: nn.Module) -> set[int]:
    """Return the ``id`` of every parameter that transformers leaves out of weight decay."""
    # Imported here: it takes half a second, and plain adapters do without it.
    from transformers.trainer_pt_utils import get_parameter_names

    decayed = set(get_parameter_names(model, [nn.LayerNorm], list(_UNDECAYED)))
    return {id(weight) for name, weight in model.named_parameters() if name not in decayed}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError: It is missing or cut off.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or cut off ({error}).") from error


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as they can be written: on the CPU, in one piece each."""
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
