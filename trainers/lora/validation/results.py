"""What forward passes over validation examples give, and what a validation makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainers.lora.validation.generation import Answer
from trainers.protocol import Scalar

Indices = tuple[int, ...]


@dataclass(frozen=True)
class BatchSums:
    """What forward passes over examples add up to.

    Attributes:
        loss: Nats over all targets.
        num_correct: Targets that the model gives the highest probability.
        num_targets: Tokens to be predicted.
    """

    loss: float = 0.0
    num_correct: int = 0
    num_targets: int = 0

    def __add__(self, other: BatchSums) -> BatchSums:
        return BatchSums(
            self.loss + other.loss,
            self.num_correct + other.num_correct,
            self.num_targets + other.num_targets,
        )

    @property
    def mean_loss(self) -> float:
        return self.loss / self.num_targets

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_targets


@dataclass
class Results:
    """What was computed with one adapter's weights as they are: batches by their examples.

    Attributes:
        sums: Of forward passes.
        answers: Generated ones.
        seconds: What was computed took before the validation that uses it.
    """

    sums: dict[Indices, BatchSums] = field(default_factory=dict)
    answers: dict[Indices, list[Answer]] = field(default_factory=dict)
    seconds: float = 0.0

    def clear(self) -> None:
        """Forget everything: the weights have changed."""
        self.sums.clear()
        self.answers.clear()
        self.seconds = 0.0

    def take_seconds(self) -> float:
        """Return what was spent ahead, for the validation that it was spent for."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


@dataclass(frozen=True)
class Measured:
    """What a validation found.

    Attributes:
        metrics: By name; only the first pass's if the trial diverged there.
        samples: Generated answers.
        seconds: How long it took.
        diverged: What is wrong with the loss; None if nothing is.
    """

    metrics: Mapping[str, float]
    samples: tuple[Mapping[str, Scalar], ...]
    seconds: float
    diverged: str | None = None
