"""Metrics of generated answers, by name; the user's own by dotted path.

Importing this loads neither torch nor the libraries that measure, so that options can be checked
against the names. The metrics of a forward pass (loss, perplexity, token accuracy) are not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from trainers.lora.generation import Answer

REPORTED: Mapping[str, tuple[str, ...]] = {
    "exact_match": ("exact_match",),
    "bleu": ("bleu",),
    "rouge": ("rouge1", "rouge2", "rougeL"),
    "distinct": ("distinct_1", "distinct_2"),
    "repetition": ("repetition",),
    "length": ("gen_len",),
    "classification": ("accuracy", "precision", "recall", "f1"),
}
"""The option's name of a metric -> the names under which its values are reported."""

BleuTokenizer = Literal["13a", "intl", "zh", "char", "none"]


def check_metric_names(names: Sequence[str]) -> None:
    """Check names as options give them; nothing is imported.

    Raises:
        ValueError: A name is neither known nor a dotted path, or is given twice.
    """
    raise NotImplementedError


def reported_names(names: Sequence[str]) -> frozenset[str] | None:
    """Return under which names these metrics are reported; None if only running them tells."""
    raise NotImplementedError


def greater_is_better(name: str) -> bool:
    """Return whether a reported metric, of answers or not, is better when it is greater."""
    raise NotImplementedError


class AnswerMetrics:
    """The metrics that one trainer measures answers by."""

    def __init__(self, names: Sequence[str], bleu_tokenize: BleuTokenizer = "13a") -> None:
        """Load the user's own metrics.

        Raises:
            ValueError: A name is not known, or a dotted path leads to nothing that can be called.
        """
        raise NotImplementedError

    def measure(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Return all values by the names under which they are reported.

        Raises:
            ValueError: There are no answers, or a metric of the user's own failed or did not
                return numbers: named by its path.
        """
        raise NotImplementedError
