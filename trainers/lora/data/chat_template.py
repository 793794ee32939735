"""The chat template in use: the model's own, one of ours by name, or a file."""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.lora.data.template_check import check_template
from trainers.lora.data.templates import TEMPLATES

PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n### Response:\n"
    "{% else %}{{ message.content }}{{ eos_token }}\n\n"
    "{% endif %}{% endfor %}"
)
"""For base models that come without a chat template; Alpaca's wording."""

DATE = datetime.datetime(2024, 7, 26)
"""What templates that write today's date write here: another day must not make other data of the
same rows. The date that Llama 3's template falls back on."""

_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


@dataclass(frozen=True)
class ChosenTemplate:
    """A template for one tokenizer.

    Attributes:
        whose: For messages, as in "the model's".
        jinja: Takes ``messages`` and ``add_generation_prompt``.
        begin: What comes before all: the text of the token that this tokenizer begins a text with,
            where the template leaves it to the tokenizer.
        notes: What the user should know of it.
    """

    whose: str
    jinja: str
    begin: str
    notes: tuple[str, ...]

    @property
    def whole(self) -> str:
        """The template with its beginning, as a tokenizer would keep it."""
        return (f"{{{{ {json.dumps(self.begin)} }}}}" if self.begin else "") + self.jinja


def choose_template(name: str | None, tokenizer: Any) -> ChosenTemplate:
    """Return the template of a name or a file, or for None the tokenizer's own.

    Raises:
        ValueError: The file cannot be read, or is no template.
    """
    notes = []
    if name is None and tokenizer.chat_template:
        whose, jinja, begin = "the model's", tokenizer.get_chat_template(), ""
    elif name is None:
        whose, jinja, begin = "the plain", PLAIN_CHAT_TEMPLATE, begin_text(tokenizer)
        notes.append(
            "the model has no chat template: conversations are written as "
            "'### Instruction: ... ### Response: ...'"
        )
    elif name in TEMPLATES:
        whose, jinja, begin = f"the {name}", TEMPLATES[name].jinja, begin_text(tokenizer)
        vocabulary = tokenizer.get_vocab()
        spelled = [marker for marker in TEMPLATES[name].markers if marker not in vocabulary]
        if spelled:
            notes.append(
                f"chat_template {name}: {', '.join(spelled)} {'is' if len(spelled) == 1 else 'are'} "
                f"no token of this model's tokenizer, and spelled out"
            )
    else:
        whose, jinja, begin = f"the {name}", _read_file(name), ""
    dated, num_dates = _TODAY.subn(lambda call: json.dumps(DATE.strftime(call[2])), jinja)
    if num_dates:
        notes.append(
            f"the chat template writes today's date: here it is always {DATE:%d %b %Y}, so that "
            f"the data stays the same"
        )
    return ChosenTemplate(whose, dated, begin, tuple(notes))


def begin_text(tokenizer: Any) -> str:
    """Return the text of the token that this tokenizer begins every text with, if it does."""
    begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if begins else ""


def _read_file(name: str) -> str:
    path = Path(name).expanduser()
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for ever
            raise OSError("it is no file")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"chat_template: {name!r} cannot be read ({error}). Give a .jinja file, or one of "
            f"{', '.join(TEMPLATES)}."
        ) from None
    check_template(text, name)
    return text
