"""The JSON Schema of a parameter under `space`, for editors."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from search_spaces.categorical import SCALAR_LIST_SCHEMA, CategoricalParameter
from search_spaces.numeric import FloatParameter, IntParameter
from search_spaces.tied import TiedParameter

_Parameter = FloatParameter | IntParameter | CategoricalParameter | TiedParameter


def space_json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of one entry of `space`.

    Returns:
        ``{"$defs": {...}, "parameter": {...}}``. Put the definitions into ``$defs`` at the root of
        the bigger schema, and the parameter where a value of the `space` mapping is described:
        references are of the form ``#/$defs/FloatParameter``.
    """
    schema = TypeAdapter(_Parameter).json_schema(ref_template="#/$defs/{model}")
    definitions = schema.pop("$defs")
    choices = {
        **SCALAR_LIST_SCHEMA,
        "description": "Short for {type: categorical, choices: [...]}.",
    }
    return {"$defs": definitions, "parameter": {"anyOf": [*schema["anyOf"], choices]}}
