from __future__ import annotations

import json

from search_spaces import space_json_schema


def test_the_schema_is_json_and_refers_only_to_its_own_definitions():
    schema = space_json_schema()
    text = json.dumps(schema)
    references = {part.split('"')[0] for part in text.split("#/$defs/")[1:]}
    assert references == schema["$defs"].keys()
    assert references == {
        "CategoricalParameter",
        "FloatParameter",
        "IntParameter",
        "TiedParameter",
    }


def test_the_schema_names_every_key_and_refuses_others():
    definitions = space_json_schema()["$defs"]
    keys = {"type", "low", "high", "log", "step", "grid", "when"}
    assert definitions["FloatParameter"]["properties"].keys() == keys
    assert definitions["TiedParameter"]["required"] == ["value"]
    assert all(not entry["additionalProperties"] for entry in definitions.values())
