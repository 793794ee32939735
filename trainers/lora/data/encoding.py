"""Turns samples into token ids and labels: the chat template, and where the answers are.

The loss is taken on answers only. Answers are found as spans of characters in the rendered text,
which is then tokenised once and whole, so that tokens are those the model sees when it is used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainers.lora.data.chat_template import begin_text, choose_template
from trainers.lora.data.samples import Completion, Conversation, Message, Sample
from trainers.lora.data.template_check import check_template, within_time
from trainers.lora.options import LoraOptions

IGNORE_INDEX = -100

Span = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """One sample as tokens, or several in one row.

    Attributes:
        input_ids: Shape (tokens,), int32.
        labels: Same shape: the token's own id where it is to be learned, else IGNORE_INDEX.
        truncated: Whether the sample was longer than allowed.
        num_skipped_answers: Earlier answers that the chat template rewrites, so not learned.
        where: The row it came from, as in ``train.jsonl:17``; several are joined by ``+``.
        prompt_length: Tokens before the last answer.
        lengths: Tokens of each sample in this row; empty if it is one.
    """

    input_ids: Tensor
    labels: Tensor
    truncated: bool
    num_skipped_answers: int
    where: str = ""
    prompt_length: int = 0
    lengths: tuple[int, ...] = ()

    @property
    def num_targets(self) -> int:
        """Tokens to learn; the first is never one, as nothing leads to it."""
        return int((self.labels[1:] != IGNORE_INDEX).sum())


class Encoder:
    """Turns samples into examples with one tokenizer. The same sample gives the same example."""

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        default_system: str | None,
        chat_template: str | None = None,
        train_on_prompt: bool = False,
        mask_history: bool = False,
    ) -> None:
        """Take a tokenizer of transformers, which must tell where in the text a token is.

        Args:
            tokenizer: Of the base model.
            max_length: Tokens to keep of an example.
            default_system: System message for conversations without one.
            chat_template: A name of ours or a .jinja file; None for the tokenizer's own.
            train_on_prompt: Learn every token.
            mask_history: Learn the last answer only.

        Raises:
            ValueError: The tokenizer is one of the slow kind, or the template cannot be read.
        """
        if not tokenizer.is_fast:
            raise ValueError(
                f"the model's tokenizer ({type(tokenizer).__name__}) cannot tell where its tokens "
                f"are in the text. Use a model with a tokenizer.json."
            )
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer  # without what transformers wraps around it
        self._backend.no_truncation()
        self._backend.no_padding()
        self._max_length = max_length
        self._default_system = default_system
        self._train_on_prompt = train_on_prompt
        self._mask_history = mask_history
        self._begin = begin_text(tokenizer)
        self._chat = choose_template(chat_template, tokenizer)
        check_template(self._chat.jinja, f"{self._chat.whose} template")
        self._is_tried = False

    @classmethod
    def of(cls, options: LoraOptions, tokenizer: Any) -> Encoder:
        """Return the encoder that a trainer's options ask for."""
        return cls(
            tokenizer,
            options.max_length,
            options.default_system,
            options.chat_template,
            options.train_on_prompt,
            options.mask_history,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the template."""
        return self._chat.notes

    @property
    def chat_template(self) -> str:
        """The template in use, as a tokenizer would keep it."""
        return self._chat.whole

    def fingerprint(self) -> list[str]:
        """Return what changes when a sample may become other tokens."""
        tokenizer = self._tokenizer
        return [
            type(tokenizer).__name__,
            tokenizer.backend_tokenizer.to_str(),
            json.dumps(tokenizer.special_tokens_map, default=str, sort_keys=True),
            json.dumps([self._chat.whole, self._begin, self._max_length, self._default_system]),
            json.dumps([self._train_on_prompt, self._mask_history]),
        ]

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
        tokens = self._backend.encode(text, add_special_tokens=False)
        input_ids = torch.tensor(tokens.ids, dtype=torch.int32)
        offsets = tokens.offsets
        last_answer = _label(input_ids, offsets, answers[-1:]) != IGNORE_INDEX
        labels = input_ids if self._train_on_prompt else _label(input_ids, offsets, answers)
        return Example(
            input_ids=input_ids[: self._max_length].clone(),
            labels=labels[: self._max_length].clone(),
            truncated=len(input_ids) > self._max_length,
            num_skipped_answers=num_skipped,
            where=sample.where,
            prompt_length=int(last_answer.int().argmax()) if last_answer.any() else len(input_ids),
        )

    def _render_completion(self, sample: Completion) -> tuple[str, list[Span]]:
        prompt = self._begin + sample.prompt
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
        if self._mask_history:
            turns = turns[-1:]
        for turn in turns:
            lead = self._template(sample, messages[:turn], add_generation_prompt=True)
            is_all = turn == len(messages) - 1
            through = text if is_all else self._template(sample, messages[: turn + 1])
            if text.startswith(through) and through.startswith(lead):
                answers.append((len(lead), len(through)))
            elif turn == turns[-1]:
                raise ValueError(
                    f"{sample.where}: the chat template does not leave the last answer as a text "
                    f"of its own after the prompt, so it cannot be learned. Give another "
                    f"chat_template, or use the layout prompt_completion with the prompt written "
                    f"out."
                )
        return text, answers, len(turns) - len(answers)

    def _template(
        self,
        sample: Conversation,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
    ) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]

        def render() -> str:
            rendered: str = self._tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                chat_template=self._chat.jinja,
            )
            return rendered

        try:
            if not self._is_tried:
                rendered = within_time(render, f"{self._chat.whose} template")
                self._is_tried = True
            rendered = render()
        except Exception as error:  # a template may raise anything
            roles = ", ".join(message.role for message in messages)
            raise ValueError(
                f"{sample.where}: {self._chat.whose} chat template refuses this conversation "
                f"({roles}): {str(error) or type(error).__name__}."
            ) from None
        if _has_halves(rendered):
            raise ValueError(
                f"{sample.where}: {self._chat.whose} chat template writes half a character."
            )
        return self._chat.begin + rendered


def _has_halves(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


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
