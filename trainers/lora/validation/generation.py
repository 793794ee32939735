"""Generates the model's answers to validation examples: greedy, in batches, of bounded length.

Knows nothing of metrics, leaves the model and its configs as they were, and draws no random number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from trainers.lora.data.encoding import IGNORE_INDEX, Example
from trainers.lora.model.base_model import BaseModel


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
        self._base = base
        self._tokenizer = tokenizer
        self._stop_ids = _model_stop_ids(base, tokenizer)
        self._special_ids = _special_ids(tokenizer)
        text_config = base.model.config.get_text_config()
        self._num_positions = getattr(text_config, "max_position_embeddings", None)

    def questions(self, examples: Sequence[Example]) -> list[Question]:
        """Return a question for every example that has one, in their order.

        An example that was cut off has none (its answer is not whole), nor has one without a prompt.
        """
        questions = (self._question(index, example) for index, example in enumerate(examples))
        return [question for question in questions if question is not None]

    def answer(
        self, questions: Sequence[Question], max_new_tokens: int, batch_size: int
    ) -> list[Answer]:
        """Return the answers in the order of the questions.

        Args:
            questions: Made by ``questions``.
            max_new_tokens: Where an answer is cut off; earlier where the model has no more positions.
            batch_size: Questions that are answered at once, of like length.
        """
        answers: dict[int, Answer] = {}
        for limit, numbers in self._by_limit(questions, max_new_tokens):
            for start in range(0, len(numbers), batch_size):
                batch = numbers[start : start + batch_size]
                rows = self._generate([questions[number] for number in batch], limit)
                for number, row in zip(batch, rows, strict=True):
                    answers[number] = self._answer(questions[number], row)
        return [answers[number] for number in range(len(questions))]

    def _question(self, index: int, example: Example) -> Question | None:
        is_answer = (example.labels != IGNORE_INDEX).tolist()
        if example.truncated or not any(is_answer):
            return None
        end = len(is_answer) - is_answer[::-1].index(True)
        start = end
        while start > example.prompt_length and is_answer[start - 1]:
            start -= 1
        input_ids = example.input_ids.tolist()
        prompt_ids, answer_ids = input_ids[:start], input_ids[start:end]
        if not self._decode(prompt_ids).strip():
            return None  # a text that is learned whole asks nothing
        answer_ids, turn_end = self._split_turn_end(answer_ids)
        return Question(
            index=index,
            prompt_ids=tuple(prompt_ids),
            stop_ids=self._stop_ids | turn_end,
            prompt=self._decode(prompt_ids, skip_special_tokens=False),
            expected=self._decode(answer_ids),
        )

    def _split_turn_end(self, answer_ids: list[int]) -> tuple[list[int], frozenset[int]]:
        """Return an answer without the special token that closes it in the data, and that token.

        Chat templates write more after it (a line break), which no answer should be waited for.
        """
        for position in reversed(range(len(answer_ids))):
            if answer_ids[position] in self._special_ids:
                return answer_ids[:position], frozenset({answer_ids[position]})
            if self._decode(answer_ids[position:]).strip():
                break
        return answer_ids, frozenset()

    def _by_limit(
        self, questions: Sequence[Question], max_new_tokens: int
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield numbers of questions, longest prompts first, with how long their answers may get.

        A question's limit is its own, whatever its neighbours: only those of one limit meet.
        """

        def limit(number: int) -> int:
            if self._num_positions is None:
                return max_new_tokens
            free = self._num_positions - len(questions[number].prompt_ids)
            return max(1, min(max_new_tokens, free))

        order = sorted(
            range(len(questions)), key=lambda i: (limit(i), -len(questions[i].prompt_ids))
        )
        for new_tokens, numbers in groupby(order, key=limit):
            yield new_tokens, list(numbers)

    def _generate(self, questions: Sequence[Question], max_new_tokens: int) -> list[list[int]]:
        """Return the tokens that follow each prompt, up to the one that ends the answer."""
        width = max(len(question.prompt_ids) for question in questions)
        filler = min(self._stop_ids, default=0)
        input_ids = torch.full((len(questions), width), filler, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        for row, question in enumerate(questions):
            start = width - len(question.prompt_ids)  # on the left, so that answers begin together
            input_ids[row, start:] = torch.tensor(question.prompt_ids)
            attention_mask[row, start:] = 1
        # All that is not said here would be the model's own default, which may be to sample.
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=filler,
            use_cache=True,
            disable_compile=True,
        )
        stop = _AtStopIds([question.stop_ids for question in questions], self._base.device)
        with self._as_before(config), self._base.autocast():
            output = self._base.model.generate(
                input_ids.to(self._base.device),
                attention_mask=attention_mask.to(self._base.device),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([stop]),
            )
        rows: list[list[int]] = output[:, width:].tolist()
        return rows

    def _answer(self, question: Question, row: Sequence[int]) -> Answer:
        stops = [position for position, token in enumerate(row) if token in question.stop_ids]
        ids = row[: stops[0]] if stops else row
        return Answer(
            index=question.index,
            prompt=question.prompt,
            expected=question.expected,
            generated=self._decode(ids),
            num_tokens=len(ids),
            finished=bool(stops),
        )

    def _decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    @contextlib.contextmanager
    def _as_before(self, config: GenerationConfig) -> Iterator[None]:
        """Let the model generate by ``config`` alone; put back all that generating may change."""
        model = self._base.model
        own_config = model.generation_config
        modes = [(module, module.training) for module in model.modules()]
        model.generation_config = config
        model.eval()
        try:
            # Nothing is drawn. The global random state is not put back, as that would undo what
            # another thread draws meanwhile.
            yield
        finally:
            model.generation_config = own_config
            for module, was_training in modes:
                module.training = was_training


class _AtStopIds(StoppingCriteria):
    """Ends each row at a stop token of its own question."""

    def __init__(self, stop_ids: Sequence[frozenset[int]], device: torch.device) -> None:
        most = max(map(len, stop_ids))
        padded = [[*sorted(ids), *[-1] * (most - len(ids))] for ids in stop_ids]
        self._stop_ids_BS = torch.tensor(padded, dtype=torch.int64, device=device)

    def __call__(self, input_ids: Tensor, scores: object, **arguments: object) -> Tensor:
        newest_B1 = input_ids[:, -1:]
        return (newest_B1 == self._stop_ids_BS.to(input_ids.device)).any(dim=-1)


def _model_stop_ids(base: BaseModel, tokenizer: Any) -> frozenset[int]:
    """Return the tokens at which this model and this tokenizer end a text."""
    configured = getattr(base.model.generation_config, "eos_token_id", None)
    if configured is None:
        configured = []
    ids = [configured] if isinstance(configured, int) else list(configured)
    return frozenset(int(id_) for id_ in [*ids, tokenizer.eos_token_id] if id_ is not None)


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder
    special = (id_ for id_, token in added.items() if token.special)
    return frozenset([*tokenizer.all_special_ids, *special])
