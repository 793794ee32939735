"""Several datasets become one: one after the other, or in turn by weight.

Works on the numbers of samples alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from trainers.lora.options import LoraOptions
from trainers.lora.seeds import derive_seed

_STOPPING = {
    "interleave_under": "first_exhausted",
    "interleave_over": "all_exhausted",
    "interleave_once": "all_exhausted_without_replacement",
}


def mix(sets: Sequence[Sequence[int]], options: LoraOptions) -> list[int]:
    """Return the samples of several datasets in the order in which they make one.

    Args:
        sets: Each dataset's samples, by number.
    """
    if options.mix_strategy == "concat":
        return [sample for one in sets for sample in one]
    for entry, one in zip(options.datasets or (), sets, strict=True):
        if not one:
            raise ValueError(
                f"datasets: {entry.path} has no row left to train on, so it cannot be interleaved. "
                f"Give more rows, a smaller val_size, or leave it out."
            )
    # Imported here: it takes two seconds, and one dataset needs no mixing.
    import datasets

    mixed = datasets.interleave_datasets(
        [datasets.Dataset.from_dict({"sample": list(one)}) for one in sets],
        probabilities=_probabilities(options),
        seed=derive_seed(options.data_seed, "mix"),
        stopping_strategy=_STOPPING[options.mix_strategy],
    )
    return list(mixed["sample"])


def _probabilities(options: LoraOptions) -> list[float] | None:
    weights = options.interleave_probs or [
        entry.weight for entry in options.datasets or () if entry.weight is not None
    ]
    total = sum(weights)
    return [weight / total for weight in weights] or None


def sample_order(count: int, seed: int) -> list[int]:
    """Return 0 to ``count`` - 1 in the order in which limits and splits take samples."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def repeated(samples: Sequence[int], wanted: int, seed: int) -> list[int]:
    """Return the samples, some of them again, so that there are as many as wanted."""
    if not samples:
        return []
    extra = max(wanted - len(samples), 0)
    return [*samples, *random.Random(derive_seed(seed, "repeat")).choices(samples, k=extra)]
