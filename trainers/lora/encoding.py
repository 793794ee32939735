"""Turns samples into token ids and labels: the chat template, and where the answers are.

The loss is taken on answers only. Answers are found as spans of characters in the rendered text,
which is then tokenised once and whole, so that tokens are those the model sees when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from trainers.lora.samples import Completion, Conversation, Message, Sample

IGNORE_INDEX = -100

PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n### Response:\n"
    "{% else %}{{ message.content }}{{ eos_token }}\n\n"
    "{% endif %}{% endfor %}"
)
"""For base models that come without a chat template; Alpaca's wording."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """One sample as tokens.

    Attributes:
        input_ids: Shape (tokens,), int32.
        labels: Same shape: the token's own id where it is to be learned, else IGNORE_INDEX.
        truncated: Whether the sample was longer than allowed.
        num_skipped_answers: Earlier answers that the chat template rewrites, so not learned.
    """

    input_ids: Tensor
    labels: Tensor
    truncated: bool
    num_skipped_answers: int

    @property
    def num_targets(self) -> int:
        """Tokens to be learned; the first token of all has nothing it could be predicted from."""
        return int((self.labels[1:] != IGNORE_INDEX).sum())


class Encoder:
    """Renders and tokenises samples for one model."""

    def __init__(self, tokenizer: Any, max_length: int, default_system: str | None) -> None:
        """Prepare for a tokenizer, which must tell where in the text a token is.

        Raises:
            ValueError: The tokenizer is one of the slow kind.
        """
        if not tokenizer.is_fast:
            raise ValueError(
                f"the model's tokenizer ({type(tokenizer).__name__}) cannot tell where its tokens "
                f"are in the text. Use a model with a tokenizer.json."
            )
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._default_system = default_system
        self._bos = _bos_text(tokenizer)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def encode(self, sample: Sample) -> Example:
        """Return the sample's tokens, cut to the allowed length.

        Raises:
            ValueError: The chat template refuses the sample, or hides its answer.
        """
        if isinstance(sample, Conversation):
            text, answers, num_skipped = self._render(sample)
        else:
            text, answers = self._render_completion(sample)
            num_skipped = 0
        tokens = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        input_ids = torch.tensor(tokens["input_ids"], dtype=torch.int32)
        labels = _label(input_ids, tokens["offset_mapping"], answers)
        return Example(
            input_ids=input_ids[: self._max_length].clone(),
            labels=labels[: self._max_length].clone(),
            truncated=len(input_ids) > self._max_length,
            num_skipped_answers=num_skipped,
        )

    def _render_completion(self, sample: Completion) -> tuple[str, list[Span]]:
        prompt = self._bos + sample.prompt
        text = prompt + sample.completion + (self._tokenizer.eos_token or "")
        return text, [(len(prompt), len(text))]

    def _render(self, sample: Conversation) -> tuple[str, list[Span], int]:
        """Return the conversation's text, its answers, and how many answers could not be found.

        A turn is found by rendering what leads to it and what ends with it. Some templates
        rewrite earlier turns when later ones follow (they drop reasoning): those are skipped.
        """
        messages = list(sample.messages)
        if self._default_system and messages[0].role != "system":
            messages.insert(0, Message("system", self._default_system))
        text = self._template(sample, messages)
        answers = []
        turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
        for turn in turns:
            lead = self._template(sample, messages[:turn], add_generation_prompt=True)
            through = self._template(sample, messages[: turn + 1])
            if text.startswith(through) and through.startswith(lead):
                answers.append((len(lead), len(through)))
            elif turn == turns[-1]:
                raise ValueError(
                    f"{sample.where}: the model's chat template does not leave the last answer as "
                    f"a text of its own after the prompt, so it cannot be learned. Use the layout "
                    f"prompt_completion with the prompt written out, or another model."
                )
        return text, answers, len(turns) - len(answers)

    def _template(
        self,
        sample: Conversation,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
    ) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                chat_template=None if self.has_chat_template else PLAIN_CHAT_TEMPLATE,
            )
        except TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise ValueError(
                f"{sample.where}: the model's chat template refuses this conversation "
                f"({roles}): {error}."
            ) from None
        return rendered if self.has_chat_template else self._bos + rendered


def _bos_text(tokenizer: Any) -> str:
    """Return the text of the token that this tokenizer begins every text with, if it does."""
    begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if begins else ""


def _label(input_ids: Tensor, offsets: Sequence[Span], answers: Sequence[Span]) -> Tensor:
    """Return labels for the tokens whose last character lies in an answer.

    The end is what counts: byte-level tokenizers report tokens of blanks with an empty span that
    only ends in the right place.
    """
    ends = torch.tensor([end for _, end in offsets], dtype=torch.int64)
    is_target = torch.zeros(len(ends), dtype=torch.bool)
    for first, last in answers:
        is_target |= (first < ends) & (ends <= last)
    return torch.where(is_target, input_ids, torch.full_like(input_ids, IGNORE_INDEX))
