"""Which examples a validation takes, and in which batches.

Both depend on the validation's index, the data and the options that all trials share, never on the
trial or on what it computed before: so trials compare at the same index, and a batch has the same
sums whenever it is computed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from trainers.lora.options import LoraOptions


@dataclass(frozen=True)
class EvalPart:
    """Examples that are always validated together, in batches of their own.

    Attributes:
        name: The validation set they are from; empty where there is only one.
        indices: Into the dataset's validation examples, in a seeded order.
        is_first_pass: Whether they come before all others, to see a diverged trial cheaply.
    """

    name: str
    indices: tuple[int, ...]
    is_first_pass: bool


class EvalSets:
    """The examples of each validation of a trial."""

    def __init__(self, options: LoraOptions, sets: Mapping[str, Sequence[int]]) -> None:
        """Order each validation set.

        Args:
            options: Those that all trials share.
            sets: Name -> indices of its examples. Only rotating sets are cut to eval_max_samples
                here.
        """
        self._options = options
        self._orders = {
            name: _shuffled(indices, f"{options.data_seed}:{name}")
            for name, indices in sets.items()
            if indices
        }
        self._num_examples = sum(map(len, self._orders.values()))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._orders)

    @property
    def num_different(self) -> int:
        """Validations after which nothing new comes: a rotating set begins again."""
        size = self._options.eval_max_samples
        if self._options.eval_set != "rotating" or not size:
            return 2  # of a growing set the first, which has the fewest, and the last
        return max(2, *(2 * math.ceil(len(order) / size) for order in self._orders.values()))

    def at(self, index: int, num_validations: int) -> list[EvalPart]:
        """Return the examples of validation ``index``, from 1, of so many; the first pass first."""
        parts = []
        for name, order in self._orders.items():
            examples, cuts = self._take(order, index, num_validations)
            parts += self._cut(name, examples, cuts)
        return sorted(parts, key=lambda part: not part.is_first_pass)

    def final(self, num_validations: int) -> list[EvalPart]:
        """Return the examples that a finished adapter is judged by: of a rotating set, all."""
        if self._options.eval_set != "rotating":
            return self.at(num_validations, num_validations)
        return [EvalPart(name, tuple(order), False) for name, order in self._orders.items()]

    def share(self, count: int, name: str) -> int:
        """Return how many of ``count`` examples a set gives; at least one."""
        return math.ceil(count * len(self._orders[name]) / self._num_examples)

    def _take(
        self, order: Sequence[int], index: int, num_validations: int
    ) -> tuple[Sequence[int], Sequence[int]]:
        """Return a set's examples at a validation, and where their batches begin anew.

        A growing set's examples stay in the batches in which they came.
        """
        options = self._options
        if options.eval_set == "growing":
            cuts = [
                _growing_count(options.eval_start_share, i, num_validations, len(order))
                for i in range(1, min(index, num_validations) + 1)
            ]
            return order[: cuts[-1]], cuts
        if options.eval_set == "rotating":
            assert options.eval_max_samples is not None, "the options ask for it"
            size = min(options.eval_max_samples, len(order))
            first = (index - 1) * size
            return [order[(first + i) % len(order)] for i in range(size)], (size,)
        return order, (len(order),)

    def _cut(self, name: str, examples: Sequence[int], cuts: Sequence[int]) -> list[EvalPart]:
        num_first = 0
        if self._options.eval_first_pass_samples is not None:
            num_first = min(self.share(self._options.eval_first_pass_samples, name), len(examples))
        edges = sorted({0, num_first, *cuts})
        return [
            EvalPart(name, tuple(examples[start:end]), is_first_pass=end <= num_first)
            for start, end in pairwise(edges)
        ]


def _shuffled(indices: Sequence[int], seed: str) -> list[int]:
    order = list(indices)
    random.Random(seed).shuffle(order)
    return order


def _growing_count(start_share: float, index: int, num_validations: int, count: int) -> int:
    """Return how many of ``count`` examples validation ``index`` takes: all at the last one."""
    progress = (index - 1) / (num_validations - 1) if num_validations > 1 else 1.0
    share = start_share + (1 - start_share) * progress
    return min(math.ceil(round(share * count, 6)), count)
