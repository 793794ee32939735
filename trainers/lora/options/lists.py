"""Lists that other tools write as one text with commas."""

from __future__ import annotations


def split_at_commas(value: object) -> object:
    """Turn ``"bleu, rouge"`` into a list; leave everything else to the type check."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]
