"""Turns rows into training samples: a conversation, or a prompt with its completion.

One function for each layout of rows. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trainers.lora.data.bad_rows import BadRows
from trainers.lora.data.records import Record
from trainers.lora.options import DataFormat
from trainers.lora.options.dataset_entry import ROLES


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Goes through the chat template; every assistant turn is an answer to be learned."""

    where: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Completion:
    """Plain text, no template; ``completion`` is learned. An empty prompt learns all the text."""

    where: str
    prompt: str
    completion: str


Sample = Conversation | Completion


@dataclass(frozen=True)
class Layout:
    """How rows are laid out, and what their columns and roles are called in this data.

    Attributes:
        data_format: Which layout; ``auto`` goes by the columns of the first row.
        columns: Our name of a column, or of a message's key -> its name in the data.
        roles: A role's name in the data -> system, user, assistant.
    """

    data_format: DataFormat = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)

    def name(self, column: str) -> str:
        """Return what a column is called in the data."""
        return self.columns.get(column, column)


def read_samples(
    records: list[Record],
    layout: Layout | DataFormat = "auto",
    bad_rows: BadRows | None = None,
) -> list[Sample]:
    """Return one sample for each row; ``auto`` goes by the columns of the first row.

    Raises:
        ValueError: A row does not fit the layout; names file and line, and what was found. With
            ``bad_rows`` that leave such rows out, never.
    """
    layout = layout if isinstance(layout, Layout) else Layout(layout)
    bad_rows = bad_rows or BadRows()
    found: str | None = None if layout.data_format == "auto" else layout.data_format
    samples = []
    for record in records:
        try:
            found = found or _recognise(record, layout)
            sample = _LAYOUTS[found](_Row(record, layout))
            _check_characters(sample)
        except ValueError as error:
            bad_rows.refuse(error)
        else:
            samples.append(sample)
    return samples


_NEEDED: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}


def _recognise(record: Record, layout: Layout) -> str:
    for name, columns in _NEEDED.items():
        if all(layout.name(column) in record.fields for column in columns):
            return name
    known = "; ".join(
        f"{name}: {', '.join(map(layout.name, columns))}" for name, columns in _NEEDED.items()
    )
    raise ValueError(
        f"{record.where}: the layout is not recognised from the columns "
        f"{', '.join(record.fields) or '(none)'}. Known layouts and their columns: {known}."
    )


@dataclass(frozen=True)
class _Row:
    """A record whose columns are asked for by our names, and named as in the data."""

    record: Record
    layout: Layout

    @property
    def where(self) -> str:
        return self.record.where

    def get(self, column: str) -> object:
        return self.record.fields.get(self.layout.name(column))

    def text(self, column: str) -> str:
        value = self.get(column)
        if not isinstance(value, str) or not value:
            raise self.wrong(column, "a text that is not empty", value)
        return value

    def optional_text(self, column: str) -> str:
        value = self.get(column)
        if value is not None and not isinstance(value, str):
            raise self.wrong(column, "a text", value)
        return value or ""

    def wrong(self, column: str, expected: str, found: object) -> ValueError:
        first, bracket, rest = column.partition("[")
        shown = "nothing" if found is None else repr(found)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        return ValueError(
            f"{self.where}: expected {expected} in {self.layout.name(first) + bracket + rest!r}, "
            f"found {shown}. The row has the columns {', '.join(self.record.fields) or '(none)'}."
        )


def _read_alpaca(row: _Row) -> Sample:
    """Alpaca: ``instruction``, ``input``, ``output``; perhaps ``system``, ``history``."""
    question = row.text("instruction")
    if addition := row.optional_text("input"):
        question = f"{question}\n{addition}"
    messages = []
    if system := row.optional_text("system"):
        messages.append(Message("system", system))
    history = row.get("history") or []
    if not isinstance(history, list) or any(not _is_pair(pair) for pair in history):
        raise row.wrong("history", "a list of [question, answer] pairs", history)
    for past_question, past_answer in history:
        messages += [Message("user", past_question), Message("assistant", past_answer)]
    messages += [Message("user", question), Message("assistant", row.text("output"))]
    return Conversation(row.where, tuple(messages))


def _read_messages(row: _Row) -> Sample:
    """OpenAI: ``messages``, each with ``role`` and ``content``."""
    return Conversation(row.where, _turns(row, "messages", "role", "content", {}))


_SHAREGPT_ROLES: Mapping[str, str] = {"human": "user", "gpt": "assistant"}


def _read_sharegpt(row: _Row) -> Sample:
    """ShareGPT: ``conversations``, each with ``from`` (human, gpt, system) and ``value``."""
    turns = _turns(row, "conversations", "from", "value", _SHAREGPT_ROLES)
    if system := row.optional_text("system"):
        if turns[0].role == "system":
            raise row.wrong("system", "no second system message", system)
        turns = (Message("system", system), *turns)
    return Conversation(row.where, turns)


def _read_prompt_completion(row: _Row) -> Sample:
    """TRL: two texts are taken as they are; two lists of messages are a conversation."""
    if isinstance(row.get("prompt"), list):
        return Conversation(
            row.where,
            _turns(row, "prompt", "role", "content", {}, needs_answer=False)
            + _turns(row, "completion", "role", "content", {}),
        )
    prompt = row.text("prompt")
    return Completion(row.where, prompt, row.text("completion"))


def _read_text(row: _Row) -> Sample:
    return Completion(row.where, "", row.text("text"))


_LAYOUTS: Mapping[str, Callable[[_Row], Sample]] = {
    "alpaca": _read_alpaca,
    "messages": _read_messages,
    "sharegpt": _read_sharegpt,
    "prompt_completion": _read_prompt_completion,
    "text": _read_text,
}


def _turns(
    row: _Row,
    column: str,
    role_key: str,
    content_key: str,
    default_roles: Mapping[str, str],
    needs_answer: bool = True,
) -> tuple[Message, ...]:
    turns = row.get(column)
    if not isinstance(turns, list) or not turns:
        raise row.wrong(column, "a list of messages", turns)
    role_key, content_key = row.layout.name(role_key), row.layout.name(content_key)
    role_names = row.layout.roles or default_roles
    messages = []
    for number, turn in enumerate(turns, start=1):
        place = f"{column}[{number}]"
        if not isinstance(turn, Mapping):
            raise row.wrong(place, f"an object with {role_key} and {content_key}", turn)
        role = role_names.get(str(turn.get(role_key)), turn.get(role_key))
        if role not in ROLES:
            allowed = (*(name for name in role_names), *ROLES)
            raise row.wrong(f"{place}.{role_key}", f"one of {', '.join(allowed)}", role)
        content = turn.get(content_key)
        if not isinstance(content, str):
            raise row.wrong(f"{place}.{content_key}", "a text", content)
        messages.append(Message(str(role), content))
    if needs_answer and messages[0].role == "assistant" and column != "completion":
        raise row.wrong(f"{column}[1]", "a message that the answer follows on", turns[0])
    if needs_answer and not any(m.role == "assistant" and m.content for m in messages):
        raise row.wrong(column, "at least one answer of the assistant", turns)
    return tuple(messages)


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(text, str) for text in value)
    )


def _check_characters(sample: Sample) -> None:
    """Refuse halves of characters, which JSON can hold and no tokenizer takes."""
    if isinstance(sample, Conversation):
        texts = [message.content for message in sample.messages]
    else:
        texts = [sample.prompt, sample.completion]
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{sample.where}: expected whole characters, found half of one "
                f"({text[error.start : error.start + 1]!r}) after "
                f"{text[max(0, error.start - 20) : error.start]!r}. Was the text cut inside an emoji?"
            ) from None
