"""The smart-home data: a spoken command -> its intent as short JSON.

The sentences are drawn from the English templates of home-assistant-intents, their slots filled
from the small made-up home below. Train, validation and test share no template, so a model has
to generalise. How well it does is measured elsewhere.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hassil.expression import (
    Alternative,
    Expression,
    Group,
    ListReference,
    Permutation,
    RuleReference,
    Sentence,
    TextChunk,
)
from hassil.intents import IntentData, Intents, RangeSlotList, TextSlotList
from hassil.util import normalize_whitespace
from home_assistant_intents import get_intents

SYSTEM = "Turn the smart-home command into its intent as JSON."
INTENTS = (
    "HassTurnOn",
    "HassTurnOff",
    "HassLightSet",
    "HassFanSetSpeed",
    "HassSetPosition",
    "HassSetVolume",
    "HassMediaNext",
    "HassMediaPause",
    "HassClimateGetTemperature",
    "HassClimateSetTemperature",
    "HassStartTimer",
    "HassCancelTimer",
)
NAMES = {
    "light": ("desk lamp", "porch light", "chandelier", "reading lamp", "fairy lights"),
    "switch": ("coffee maker", "heated blanket", "fish tank", "charger"),
    "fan": ("ceiling fan", "tower fan", "bathroom fan"),
    "media_player": ("soundbar", "record player", "kitchen radio", "big tv"),
    "cover": ("patio awning", "roller blind", "skylight", "side gate"),
    "lock": ("back door", "cellar door", "bike shed"),
    "climate": ("thermostat", "heat pump", "towel radiator"),
}
# The lists that a home brings along; all others come with the templates.
HOME = {
    "area": ("kitchen", "bedroom", "office", "garage", "hallway", "nursery", "attic", "studio"),
    "floor": ("basement", "loft", "mezzanine"),
    "timer_name": ("pizza", "laundry", "tea", "homework", "bread"),
    "timer_command": ("turn off the lights", "open the blinds", "pause the music"),
}
FIRST_KEYS = ("name", "area", "floor", "domain", "device_class")
ROWS_PER_INTENT = {"train": 250, "validation": 30, "test": 30}
# Of an intent's templates; at least one of each goes to validation and to test.
HELD_OUT_SHARE = 0.15
MAX_CHARACTERS = 70
MAX_ROUNDS = 500  # an intent with few commands ends below its number of rows


@dataclass(frozen=True)
class Template:
    """One sentence template of one intent, with what it needs to be filled in."""

    intent: str
    text: str
    sentence: Sentence
    data: IntentData


@dataclass(frozen=True)
class Row:
    """A command and its intent; the skeleton is the command with its slots left open."""

    template: str
    skeleton: str
    command: str
    answer: str

    def messages(self) -> dict[str, list[dict[str, str]]]:
        """Return the row in OpenAI's format."""
        said = (("system", SYSTEM), ("user", self.command), ("assistant", self.answer))
        return {"messages": [{"role": role, "content": content} for role, content in said]}


def write_smart_home(out: Path, seed: int) -> Path:
    """Write train, validation and test.jsonl to ``<out>/smart_home`` and return that folder."""
    folder = out / "smart_home"
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in make_rows(seed).items():
        lines = (json.dumps(row.messages(), ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def make_rows(seed: int) -> dict[str, list[Row]]:
    """Return the rows of train, validation and test, shuffled.

    No two parts share a template, nor a command that only differs in what fills its slots.
    """
    raw = get_intents("en")
    assert raw is not None
    raw["intents"] = {name: raw["intents"][name] for name in INTENTS}
    intents = Intents.from_dict(raw)
    rng = random.Random(seed)
    skeletons: set[str] = set()
    rows: dict[str, list[Row]] = {}
    for part, templates in _split(list(_templates(intents)), rng).items():
        rows[part] = _draw_part(intents, templates, ROWS_PER_INTENT[part], skeletons, rng)
        skeletons.update(row.skeleton for row in rows[part])
        rng.shuffle(rows[part])
    return rows


def _templates(intents: Intents) -> Iterator[Template]:
    seen: set[str] = set()
    for name, intent in intents.intents.items():
        for data in intent.data:
            for text, sentence in zip(data.sentence_texts, data.sentences, strict=True):
                if text not in seen and _names(data):
                    seen.add(text)
                    yield Template(name, text, sentence, data)


def _names(data: IntentData) -> list[str]:
    """Return the device names that a block of templates may speak of; none: skip it."""
    domains = data.requires_context.get("domain", list(NAMES))
    domains = [domains] if isinstance(domains, str) else domains
    return [name for domain in domains for name in NAMES.get(domain, ())]


def _split(templates: list[Template], rng: random.Random) -> dict[str, list[Template]]:
    parts: dict[str, list[Template]] = {"train": [], "validation": [], "test": []}
    for intent in INTENTS:
        own = [template for template in templates if template.intent == intent]
        rng.shuffle(own)
        held_out = max(1, round(HELD_OUT_SHARE * len(own)))
        parts["validation"] += own[:held_out]
        parts["test"] += own[held_out : 2 * held_out]
        parts["train"] += own[2 * held_out :]
    return parts


def _draw_part(
    intents: Intents,
    templates: list[Template],
    num_rows: int,
    taken: set[str],
    rng: random.Random,
) -> list[Row]:
    """Draw up to num_rows different commands of each intent, its templates in turn.

    Commands whose skeleton another part has taken are left out.
    """
    rows: dict[str, Row] = {}
    counts: Counter[str] = Counter()
    for _ in range(MAX_ROUNDS):
        for template in templates:
            if counts[template.intent] == num_rows:
                continue
            row = _draw(intents, template, rng)
            # Two templates may mean different things by one command: the first one counts.
            fresh = row.command not in rows and row.skeleton not in taken
            if fresh and len(row.command) <= MAX_CHARACTERS:
                counts[template.intent] += 1
                rows[row.command] = row
    return list(rows.values())


def _draw(intents: Intents, template: Template, rng: random.Random) -> Row:
    rules = {**intents.expansion_rules, **template.data.expansion_rules}
    skeleton = _expand(template.sentence.expression, rules, rng)
    slots: dict[str, object] = dict(template.data.slots)

    def fill(match: re.Match[str]) -> str:
        text, slots[match["slot"]] = _value(match["list"], intents, template.data, rules, rng)
        return text

    command = re.sub(r"\{(?P<list>\w+):(?P<slot>\w+)\}", fill, skeleton)
    keys = [key for key in FIRST_KEYS if key in slots]
    keys += sorted(slots.keys() - set(FIRST_KEYS))
    answer = {"intent": template.intent} | {key: slots[key] for key in keys}
    return Row(
        template=template.text,
        skeleton=_tidy(skeleton),
        command=_tidy(command),
        answer=json.dumps(answer, separators=(",", ":")),
    )


def _expand(expression: Expression, rules: Mapping[str, Sentence], rng: random.Random) -> str:
    """Return one of the texts that an expression stands for, each slot as {list:slot}."""
    match expression:
        case TextChunk():
            return expression.original_text
        case ListReference():
            return f"{{{expression.list_name}:{expression.slot_name}}}"
        case RuleReference():
            return _expand(rules[expression.rule_name].expression, rules, rng)
        case Alternative():
            return _expand(rng.choice(expression.items), rules, rng)
        case Permutation():
            items = rng.sample(expression.items, len(expression.items))
            return " ".join(_expand(item, rules, rng) for item in items)
        case Group():
            return "".join(_expand(item, rules, rng) for item in expression.items)
    raise AssertionError(f"unknown expression {expression!r}")


def _value(
    list_name: str,
    intents: Intents,
    data: IntentData,
    rules: Mapping[str, Sentence],
    rng: random.Random,
) -> tuple[str, object]:
    """Return one value of a slot list, as spoken and as it stands in the intent."""
    if list_name == "name":
        name = rng.choice(_names(data))
        return name, name
    if list_name in HOME:
        word = rng.choice(HOME[list_name])
        return word, word
    values = intents.slot_lists[list_name]
    if isinstance(values, RangeSlotList):
        number = rng.randrange(values.start, values.stop + 1, values.step)
        return str(number), number
    assert isinstance(values, TextSlotList)
    value = rng.choice(values.values)
    return _expand(value.text_in, rules, rng), value.value_out


def _tidy(text: str) -> str:
    return normalize_whitespace(text).strip()
