"""The README's table of options: complete, its aliases understood, its tests there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainers.lora import LoraOptions

ROOT = Path(__file__).parents[2]

INFO = {"dataset_dir": str(ROOT / "tests" / "llama_factory" / "data")}
ENTRIES = [{"path": "a.jsonl", "type": "alpaca"}]

SAMPLES: dict[str, list[dict[str, object]]] = {
    "adapter": [{"adapter": "lora"}],
    "bf16": [{"bf16": True}],
    "dataset": [{"dataset": "identity", **INFO}, {"dataset": "identity,chats", **INFO}],
    "datasets": [{"datasets": ENTRIES}],
    "disable_gradient_checkpointing": [{"disable_gradient_checkpointing": True}],
    "disable_shuffling": [{"disable_shuffling": True}],
    "do_eval": [{"do_eval": False}],
    "eval_dataset": [{"eval_dataset": "chats", **INFO}],
    "evals_per_epoch": [{"evals_per_epoch": 4, "num_epochs": 2}],
    "flash_attn": [{"flash_attn": "fa2"}],
    "fp16": [{"fp16": True}],
    "group_by_length": [{"group_by_length": True}],
    "load_in_4bit": [{"load_in_4bit": True}],
    "load_in_8bit": [{"load_in_8bit": True}],
    "neat_packing": [{"neat_packing": True}],
    "pissa_init": [{"pissa_init": True}],
    "pissa_iter": [{"pissa_init": True, "pissa_iter": 8}],
    "pure_bf16": [{"pure_bf16": True}],
    "template": [{"template": "chatml"}],
    "test_datasets": [{"test_datasets": ENTRIES}],
    "warmup_ratio": [{"warmup_ratio": 0.1}],
}
"""Files with an alias that only some values are known of; every other one is known with any."""


@dataclass(frozen=True)
class Row:
    """One option's row: its name, other tools' names for it, and the test that covers it."""

    name: str
    aliases: tuple[str, ...]
    test: str


def rows() -> list[Row]:
    text = (ROOT / "README.md").read_text()
    table = text.split("| option | LLaMA-Factory | Axolotl | test |")[1].split("\n\n")[0]
    found = []
    for line in table.splitlines()[2:]:
        name, factory, axolotl, test = (cell.strip() for cell in line.strip("|").split("|"))
        aliases = re.findall(r"`([^`]+)`", f"{factory} {axolotl}")
        found.append(Row(name.strip("`"), tuple(dict.fromkeys(aliases)), test.strip("`")))
    return found


def test_every_option_has_one_row() -> None:
    assert sorted(row.name for row in rows()) == sorted(LoraOptions.model_fields)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_every_alias_is_understood_and_the_test_is_there(row: Row) -> None:
    for alias in row.aliases:
        if alias != row.name:
            files = SAMPLES.get(alias, [{alias: "x"}])
            assert any(row.name in LoraOptions.translate(file) for file in files), alias
    file, _, function = row.test.partition("::")
    source = (ROOT / "tests" / file).read_text()
    assert re.search(rf"def {function}\(", source), row.test
    assert re.search(rf"\b{row.name}\b", source), f"{file} never names {row.name}"
