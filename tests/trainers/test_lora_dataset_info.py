"""LLaMA-Factory's and Axolotl's ways to name data: what they stand for, down to the tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.test_lora_data import load
from trainers.lora import LoraOptions
from trainers.lora.data.dataset import Dataset

Options = dict[str, object]
WriteRows = Callable[..., Path]

CHAT = [{"who": "q", "what": "say one"}, {"who": "a", "what": "one"}]


@pytest.fixture
def folder(tmp_path: Path, write_rows: WriteRows) -> Path:
    """A LLaMA-Factory data folder: each dataset holds the same conversation, four times over."""
    plain = {"instruction": "say", "input": "one", "output": "one"}
    write_rows(*[plain] * 4, name="plain.jsonl")
    renamed = {"question": "say one", "answer": "one", "rules": "", "past": [["a", "b"]]}
    write_rows(*[renamed] * 4, name="renamed.jsonl")
    write_rows(*[{"talk": CHAT}] * 4, name="chat.jsonl")
    openai = [{"role": "user", "content": "say one"}, {"role": "assistant", "content": "one"}]
    write_rows(*[{"messages": openai}] * 4, name="openai.jsonl")
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "q", "assistant_tag": "a"}
    info = {
        "plain": {"file_name": "plain.jsonl"},
        "few": {"file_name": "plain.jsonl", "num_samples": 2},
        "renamed": {
            "file_name": "renamed.jsonl",
            "columns": {"prompt": "question", "response": "answer", "system": "rules"},
        },
        "history": {
            "file_name": "renamed.jsonl",
            "columns": {"prompt": "question", "response": "answer", "history": "past"},
        },
        "chat": {
            "file_name": "chat.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "talk"},
            "tags": tags,
        },
        "openai_tags": {
            "file_name": "openai.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
            },
        },
        "openai": {"file_name": "openai.jsonl", "formatting": "openai"},
        "hub": {"hf_hub_url": "org/data", "subset": "en", "split": "train[:9]"},
        "modelscope": {"ms_hub_url": "org/data"},
        "pictures": {"file_name": "plain.jsonl", "columns": {"images": "images"}},
        "ranking": {"file_name": "plain.jsonl", "ranking": True},
        "odd": {"file_name": "plain.jsonl", "formatting": "odd"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    return tmp_path


def translate(folder: Path, **given: object) -> Options:
    return LoraOptions.translate({"dataset_dir": str(folder), **given})


def load_translated(tokenizer: Any, fixed: Options, options: Options) -> Dataset:
    shared = {k: v for k, v in fixed.items() if k not in ("train_file", "val_size")}
    return load(tokenizer, {**shared, "val_size": 1, **options})


@pytest.mark.parametrize("name", ["plain", "renamed", "chat", "openai_tags", "openai", "history"])
def test_every_entry_gives_the_conversation_it_stands_for(
    tokenizer: Any, fixed: Options, folder: Path, name: str
) -> None:
    dataset = load_translated(tokenizer, fixed, translate(folder, dataset=name))
    text = tokenizer.decode(dataset.train[0].input_ids)
    question = "say\none" if name == "plain" else "say one"
    turns = [("user", question), ("assistant", "one")]
    if name == "history":
        turns = [("user", "a"), ("assistant", "b"), *turns]
    assert text == "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns)


def test_a_plain_file_is_a_training_file(folder: Path) -> None:
    assert translate(folder, dataset="plain") == {"train_file": str(folder / "plain.jsonl")}


def test_several_datasets_are_mixed_as_there(tokenizer: Any, fixed: Options, folder: Path) -> None:
    options = translate(
        folder,
        dataset="plain, chat",
        max_samples=3,
        mix_strategy="interleave_over",
        interleave_probs="0.7,0.3",
    )
    assert "max_train_samples" not in options  # it is for each of them
    dataset = load_translated(tokenizer, fixed, options)
    rows = set(dataset.where(range(len(dataset.train))))
    assert len(rows | {example.where for example in dataset.validation}) == 6
    few = load_translated(tokenizer, fixed, translate(folder, dataset=["few", "chat"]))
    assert len(few.train) == 5


def test_validation_datasets_are_sets_by_name(tokenizer: Any, fixed: Options, folder: Path) -> None:
    options = translate(folder, dataset="plain", eval_dataset="openai,renamed")
    dataset = load_translated(tokenizer, fixed, {**options, "val_size": None})
    assert dataset.validation_sets == {"openai": (0, 1, 2, 3), "renamed": (4, 5, 6, 7)}
    one = translate(folder, dataset="plain", eval_dataset="plain")
    assert one["validation_file"] == str(folder / "plain.jsonl")
    own = {"a": "a.jsonl"}
    assert translate(folder, eval_dataset=own)["validation_file"] == own
    assert translate(folder, eval_dataset="b.jsonl")["validation_file"] == "b.jsonl"


def test_a_dataset_of_the_hub_keeps_its_parts(folder: Path) -> None:
    assert translate(folder, dataset="hub") == {
        "datasets": [{"path": "org/data", "name": "en", "split": "train[:9]"}]
    }
    online = LoraOptions.translate({"dataset": "org/a,org/b", "dataset_dir": "ONLINE"})
    assert online == {"datasets": [{"path": "org/a"}, {"path": "org/b"}]}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none", r"'none' is not in .*dataset_info\.json\. There: chat, few"),
        ("modelscope", r"has ms_hub_url, but no local file"),
        ("pictures", "has images, which is not trained here"),
        ("ranking", "has ranking"),
        ("odd", "formatting 'odd' is not known. Known: alpaca, sharegpt, openai"),
        ("", "must name datasets"),
        (3, "must name datasets"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(folder: Path, name: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        translate(folder, dataset=name)


def test_a_torn_dataset_info_names_the_line(folder: Path) -> None:
    (folder / "dataset_info.json").write_text('{\n "a": {')
    with pytest.raises(ValueError, match=r"dataset_info\.json:2: not JSON"):
        translate(folder, dataset="a")


def test_axolotls_datasets_give_the_same_conversations(
    tokenizer: Any, fixed: Options, folder: Path
) -> None:
    options = LoraOptions.translate(
        {
            "datasets": [
                {"path": str(folder / "plain.jsonl"), "type": "alpaca", "ds_type": "json"},
                {
                    "path": str(folder / "chat.jsonl"),
                    "type": "chat_template",
                    "field_messages": "talk",
                    "message_property_mappings": {"role": "who", "content": "what"},
                    "roles": {"user": ["q"], "assistant": ["a"]},
                    "roles_to_train": ["assistant"],
                },
                {
                    "path": "json",
                    "data_files": str(folder / "openai.jsonl"),
                    "type": "chat_template",
                },
                {
                    "path": str(folder / "renamed.jsonl"),
                    "type": {"field_instruction": "question", "field_output": "answer"},
                },
            ],
            "val_set_size": 0,
            "test_datasets": [
                {"path": str(folder / "renamed.jsonl"), "type": "completion", "field": "question"}
            ],
            "chat_template": "tokenizer_default",
            "train_on_inputs": False,
            "sample_packing": True,
        }
    )
    dataset = load_translated(tokenizer, fixed, {"val_size": None, **options})
    assert dataset.num_skipped_rows == 0
    assert sum(len(example.lengths) for example in dataset.train) == 16
    texts = {tokenizer.decode(example.input_ids) for example in dataset.validation}
    assert texts == {"say one<|im_end|>"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"path": "a", "type": "dpo"}, "type 'dpo' is not supported. Known: alpaca"),
        ({"path": "a", "type": {"format": "[INST]"}}, "type with 'format'"),
        ({"path": "a", "type": "alpaca", "roles_to_train": ["user"]}, "only answers are learned"),
        ({"path": "org/a", "data_files": "b.json"}, "Give each file as a dataset of its own"),
    ],
)
def test_axolotls_types_without_a_meaning_here_are_refused(entry: Options, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoraOptions.translate({"datasets": [entry]})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"template": "llama3"}, {"chat_template": "llama3"}),
        ({"template": "default"}, {"chat_template": "human_assistant"}),
        ({"template": "qwen2_vl"}, {"chat_template": None}),
        ({"chat_template": "qwen_25"}, {"chat_template": "qwen"}),
        ({"chat_template_path": "a.jinja"}, {"chat_template": "a.jinja"}),
        ({"packing": True, "neat_packing": True}, {"packing": True}),
        ({"packing": True, "neat_packing": False}, {"packing": True}),
        ({"neat_packing": True}, {"packing": True}),
        ({"packing": None}, {}),
        ({"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
        ({"group_by_length": False}, {}),
        ({"disable_shuffling": True}, {"train_sampling_strategy": "sequential"}),
        ({"completion_only_loss": False}, {"train_on_prompt": True}),
        ({"assistant_only_loss": True}, {}),
        ({"train_on_inputs": True}, {"train_on_prompt": True}),
        ({"val_size": 0.0}, {}),
        ({"max_samples": 5}, {"max_train_samples": 5}),
        ({"tokenized_path": "t"}, {"dataset_prepared_path": "t"}),
        (
            {"dataset_name": "d", "dataset_config": "c"},
            {"dataset_name": "d", "dataset_config_name": "c"},
        ),
        ({"dataset_test_split": "test"}, {"dataset_eval_split": "test"}),
    ],
)
def test_names_of_other_tools_mean_ours(given: Options, expected: Options) -> None:
    assert LoraOptions.translate(given) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"template": "nosuch"}, r"template: 'nosuch' is not known here\. Known: alpaca"),
        ({"group_by_length": 1.5}, "must be true or false"),
        ({"template": "llama3", "chat_template": "chatml"}, "the same option"),
        ({"packing_strategy": "wrapped"}, "only 'bfd'"),
    ],
)
def test_values_of_other_tools_without_a_meaning_are_refused(given: Options, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoraOptions.translate(given)
