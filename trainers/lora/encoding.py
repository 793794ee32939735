"""Turns samples into token ids and labels: the chat template, and where the answers are.

The loss is taken on answers only. Answers are found as spans of characters in the rendered text,
which is then tokenised once and whole, so that tokens are those the model sees when it is used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2.sandbox
import torch
from jinja2 import TemplateError
from torch import Tensor

from trainers.lora.options import LoraOptions
from trainers.lora.samples import Completion, Conversation, Message, Sample
from trainers.lora.templates import TEMPLATES

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
    """Turns samples into examples with one tokenizer. Stateless."""

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
        self._max_length = max_length
        self._default_system = default_system
        self._train_on_prompt = train_on_prompt
        self._mask_history = mask_history
        self._bos = _bos_text(tokenizer)
        self._template_name = chat_template
        self._own_template = _read_template(chat_template)
        if self._own_template is None and not tokenizer.chat_template:
            self._own_template = PLAIN_CHAT_TEMPLATE

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
    def notes(self) -> list[str]:
        """What the user should know of the template."""
        if self._template_name is None:
            if self._own_template is None:
                return []
            return [
                "the model has no chat template: conversations are written as "
                "'### Instruction: ... ### Response: ...'"
            ]
        named = TEMPLATES.get(self._template_name)
        vocabulary = self._tokenizer.get_vocab()
        spelled = [m for m in (named.markers if named else ()) if m not in vocabulary]
        if spelled:
            return [
                f"chat_template {self._template_name}: {', '.join(spelled)} "
                f"{'is' if len(spelled) == 1 else 'are'} no token of this model's tokenizer, and "
                f"spelled out"
            ]
        return []

    @property
    def chat_template(self) -> str:
        """The template in use, as a tokenizer would keep it."""
        if self._own_template is None:
            template = self._tokenizer.chat_template
            return template if isinstance(template, str) else str(template.get("default", ""))
        bos = self._bos if self._adds_bos else ""
        return (f"{{{{ {json.dumps(bos)} }}}}" if bos else "") + self._own_template

    def fingerprint(self) -> list[str]:
        """Return what changes when a sample may become other tokens."""
        tokenizer = self._tokenizer
        return [
            type(tokenizer).__name__,
            tokenizer.backend_tokenizer.to_str(),
            json.dumps(tokenizer.special_tokens_map, default=str, sort_keys=True),
            json.dumps(tokenizer.chat_template, default=str),
            json.dumps(self._own_template),
            json.dumps([self._bos, self._max_length, self._default_system]),
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
        tokens = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        input_ids = torch.tensor(tokens["input_ids"], dtype=torch.int32)
        offsets = tokens["offset_mapping"]
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
        if self._mask_history:
            turns = turns[-1:]
        for turn in turns:
            lead = self._template(sample, messages[:turn], add_generation_prompt=True)
            through = self._template(sample, messages[: turn + 1])
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
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                chat_template=self._own_template,
            )
        except (TemplateError, TypeError) as error:
            roles = ", ".join(message.role for message in messages)
            raise ValueError(
                f"{sample.where}: {self._whose} chat template refuses this conversation "
                f"({roles}): {error}."
            ) from None
        return self._bos + rendered if self._adds_bos else rendered

    @property
    def _adds_bos(self) -> bool:
        """Templates of ours leave the token that begins a text to the tokenizer; files write it."""
        return self._own_template is not None and (
            self._template_name is None or self._template_name in TEMPLATES
        )

    @property
    def _whose(self) -> str:
        return "the model's" if self._template_name is None else f"the {self._template_name}"


def _read_template(name: str | None) -> str | None:
    """Return the Jinja of a template's name or file; None for the tokenizer's own."""
    if name is None:
        return None
    if name in TEMPLATES:
        return TEMPLATES[name].jinja
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8-sig")
        jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(
            text
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"chat_template: {name!r} cannot be read ({error}). Give a .jinja file, or one of "
            f"{', '.join(TEMPLATES)}."
        ) from None
    except jinja2.TemplateSyntaxError as error:
        if "generation" not in str(error):  # transformers knows a tag of this name
            raise ValueError(f"chat_template: {name}:{error.lineno}: {error.message}.") from None
    return text


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
