"""Parameters that follow from others: `{value: "2 * lora_r"}`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PlainValidator, WithJsonSchema

from search_spaces.entries import Entry
from search_spaces.values import plain


class TiedParameter(Entry):
    """A parameter whose value follows from others. Text is an expression, all else a constant."""

    value: Annotated[
        object,
        PlainValidator(plain),
        WithJsonSchema({}),
        Field(description="An expression, as in '2 * lora_r', or a constant. Text: \"'cosine'\"."),
    ]
