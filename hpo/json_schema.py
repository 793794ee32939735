"""The JSON Schema of a study's file: its own fields, the space language and the trainer's options."""

from __future__ import annotations

from typing import Any

from hpo.lookup import find_trainer
from hpo.samplers import GRID, SAMPLERS
from hpo.spec import StudySpec
from hpo.spec_file import DEFAULT_STORAGE
from hpo.verdicts import OURS, PRUNERS
from search_spaces import space_json_schema


def file_schema(trainer: str = "lora") -> dict[str, Any]:
    """Return the schema (draft 2020-12) of a study's file for one trainer."""
    schema = StudySpec.model_json_schema()
    options = find_trainer(trainer).Options
    option_schema = options.model_json_schema()
    space = space_json_schema()
    definitions = schema.setdefault("$defs", {})
    definitions |= option_schema.pop("$defs", {})
    definitions |= space["$defs"]
    properties = schema["properties"]
    named = dict(option_schema["properties"])
    named |= {alias: named[name] for alias, name in options.aliases.items() if name in named}
    properties["fixed"] = {
        "type": "object",
        "description": properties["fixed"]["description"],
        "properties": named,
        "additionalProperties": False,
    }
    properties["space"] = {
        "type": "object",
        "description": properties["space"]["description"],
        "minProperties": 1,
        "properties": {
            name: {**space["parameter"], "description": field.get("description", "")}
            for name, field in option_schema["properties"].items()
            if name not in options.shared
        },
        "additionalProperties": False,
    }
    properties["storage"] = {
        "type": "string",
        "default": DEFAULT_STORAGE,
        "description": "The database: sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME.",
    }
    properties["base"] = {
        "type": "string",
        "description": "A flat training YAML (LLaMA-Factory's) whose options go under 'fixed'.",
    }
    definitions["SamplerSpec"]["properties"]["type"]["examples"] = [GRID, *SAMPLERS]
    definitions["PrunerSpec"]["properties"]["type"]["examples"] = [*OURS, *PRUNERS]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "hpo", **schema}
