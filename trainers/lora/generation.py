"""Generates the model's answers to validation examples: greedy, in batches, of bounded length.

Knows nothing of metrics, and leaves the model, its configs and the random state as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainers.lora.base_model import BaseModel
from trainers.lora.encoding import Example


@dataclass(frozen=True)
class Question:
    """What a validation example asks, and the answer it expects.

    Attributes:
        index: Of the example in the set that the question was made from.
        prompt_ids: Everything that leads to the example's last answer.
        stop_ids: Tokens that end an answer: the model's, and the one that ends this turn in the data.
        prompt: The same as text, with special tokens.
        expected: The last answer as text, without special tokens.
    """

    index: int
    prompt_ids: tuple[int, ...]
    stop_ids: frozenset[int]
    prompt: str
    expected: str


@dataclass(frozen=True)
class Answer:
    """What the model answered to a question.

    Attributes:
        index: The question's.
        prompt: The question's, with special tokens.
        expected: The question's.
        generated: The model's answer as text, without special tokens.
        num_tokens: Of the answer, without the one that ended it.
        finished: Whether the answer ended by itself; False: it was cut off at ``max_new_tokens``.
    """

    index: int
    prompt: str
    expected: str
    generated: str
    num_tokens: int
    finished: bool


class Generator:
    """Answers questions with the adapter that is active on the base model."""

    def __init__(self, base: BaseModel, tokenizer: Any) -> None:
        raise NotImplementedError

    def questions(self, examples: Sequence[Example]) -> list[Question]:
        """Return a question for every example that has one, in their order.

        An example that was cut off has none (its answer is not whole), nor has one without a prompt.
        """
        raise NotImplementedError

    def answer(
        self, questions: Sequence[Question], max_new_tokens: int, batch_size: int
    ) -> list[Answer]:
        """Return the answers in the order of the questions."""
        raise NotImplementedError
