"""Turns rows into training samples: a conversation, or a prompt with its completion.

One function for each layout of rows. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainers.lora.options import DataFormat
from trainers.lora.records import Record


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


def read_samples(records: list[Record], data_format: DataFormat) -> list[Sample]:
    """Return one sample for each row; ``auto`` goes by the columns of the first row.

    Raises:
        ValueError: A row does not fit the layout; names file and line, and what was found.
    """
    assert records, "a data file without rows is refused when it is read"
    layout = _recognise(records[0]) if data_format == "auto" else data_format
    return [_LAYOUTS[layout](record) for record in records]


_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}


def _recognise(record: Record) -> str:
    for layout, columns in _COLUMNS.items():
        if all(column in record.fields for column in columns):
            return layout
    known = "; ".join(f"{layout}: {', '.join(columns)}" for layout, columns in _COLUMNS.items())
    raise ValueError(
        f"{record.where}: the layout is not recognised from the columns "
        f"{', '.join(record.fields) or '(none)'}. Known layouts and their columns: {known}."
    )


def _read_alpaca(record: Record) -> Sample:
    """Alpaca: ``instruction``, ``input``, ``output``; perhaps ``system``, ``history``."""
    question = _text(record, "instruction")
    if addition := _optional_text(record, "input"):
        question = f"{question}\n{addition}"
    messages = []
    if system := _optional_text(record, "system"):
        messages.append(Message("system", system))
    history = record.fields.get("history") or []
    if not isinstance(history, list) or any(not _is_pair(pair) for pair in history):
        raise _wrong(record, "history", "a list of [question, answer] pairs", history)
    for past_question, past_answer in history:
        messages += [Message("user", past_question), Message("assistant", past_answer)]
    messages += [Message("user", question), Message("assistant", _text(record, "output"))]
    return Conversation(record.where, tuple(messages))


def _read_messages(record: Record) -> Sample:
    """OpenAI: ``messages``, each with ``role`` and ``content``."""
    return Conversation(record.where, _turns(record, "messages", "role", "content", {}))


_SHAREGPT_ROLES: Mapping[str, str] = {"human": "user", "gpt": "assistant"}


def _read_sharegpt(record: Record) -> Sample:
    """ShareGPT: ``conversations``, each with ``from`` (human, gpt, system) and ``value``."""
    turns = _turns(record, "conversations", "from", "value", _SHAREGPT_ROLES)
    if system := _optional_text(record, "system"):
        turns = (Message("system", system), *turns)
    return Conversation(record.where, turns)


def _read_prompt_completion(record: Record) -> Sample:
    """TRL: two texts are taken as they are; two lists of messages are a conversation."""
    if isinstance(record.fields.get("prompt"), list):
        return Conversation(
            record.where,
            _turns(record, "prompt", "role", "content", {}, needs_answer=False)
            + _turns(record, "completion", "role", "content", {}),
        )
    prompt = _text(record, "prompt")
    return Completion(record.where, prompt, _text(record, "completion"))


def _read_text(record: Record) -> Sample:
    return Completion(record.where, "", _text(record, "text"))


_LAYOUTS: Mapping[str, Callable[[Record], Sample]] = {
    "alpaca": _read_alpaca,
    "messages": _read_messages,
    "sharegpt": _read_sharegpt,
    "prompt_completion": _read_prompt_completion,
    "text": _read_text,
}

_ROLES = ("system", "user", "assistant")


def _turns(
    record: Record,
    column: str,
    role_key: str,
    content_key: str,
    role_names: Mapping[str, str],
    needs_answer: bool = True,
) -> tuple[Message, ...]:
    turns = record.fields.get(column)
    if not isinstance(turns, list) or not turns:
        raise _wrong(record, column, "a list of messages", turns)
    messages = []
    for number, turn in enumerate(turns, start=1):
        place = f"{column}[{number}]"
        if not isinstance(turn, Mapping):
            raise _wrong(record, place, f"an object with {role_key} and {content_key}", turn)
        role = role_names.get(str(turn.get(role_key)), turn.get(role_key))
        if role not in _ROLES:
            allowed = (*(name for name in role_names), *_ROLES)
            raise _wrong(record, f"{place}.{role_key}", f"one of {', '.join(allowed)}", role)
        content = turn.get(content_key)
        if not isinstance(content, str):
            raise _wrong(record, f"{place}.{content_key}", "a text", content)
        messages.append(Message(str(role), content))
    if needs_answer and messages[0].role == "assistant" and column != "completion":
        raise _wrong(record, f"{column}[1]", "a message that the answer follows on", turns[0])
    if needs_answer and not any(m.role == "assistant" and m.content for m in messages):
        raise _wrong(record, column, "at least one answer of the assistant", turns)
    return tuple(messages)


def _text(record: Record, column: str) -> str:
    value = record.fields.get(column)
    if not isinstance(value, str) or not value:
        raise _wrong(record, column, "a text that is not empty", value)
    return value


def _optional_text(record: Record, column: str) -> str:
    value = record.fields.get(column)
    if value is not None and not isinstance(value, str):
        raise _wrong(record, column, "a text", value)
    return value or ""


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)
    )


def _wrong(record: Record, column: str, expected: str, found: object) -> ValueError:
    shown = "nothing" if found is None else repr(found)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return ValueError(
        f"{record.where}: expected {expected} in {column!r}, found {shown}. The row has the "
        f"columns {', '.join(record.fields) or '(none)'}."
    )
