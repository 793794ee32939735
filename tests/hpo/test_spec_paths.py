"""Paths inside lists and mappings of a file start at the file, too."""

from __future__ import annotations

from pathlib import Path

from hpo.config_file import read_config_file


def config(folder: Path, text: str) -> dict[str, object]:
    (folder / "c.yaml").write_text("model_name_or_path: org/model\n" + text)
    return read_config_file(folder / "c.yaml").config


def test_paths_of_lists_of_files_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    found = config(tmp_path, "train_file: [a.jsonl, more]\nvalidation_file: {x: v.csv, y: [w.csv]}")
    assert found["train_file"] == [str(tmp_path / "a.jsonl"), str(tmp_path / "more")]
    assert found["validation_file"] == {
        "x": str(tmp_path / "v.csv"),
        "y": [str(tmp_path / "w.csv")],
    }


def test_of_a_dataset_only_the_path_is_one(tmp_path: Path) -> None:
    for name in ("train", "org", "instruction"):
        (tmp_path / name).mkdir()
    text = """
val_size: 1
dataset_prepared_path: ./prepared
datasets:
  - {path: a.jsonl, columns: {instruction: train}, weight: 1}
  - {path: org/data, split: train, name: org, weight: 2}
  - {path: json, data_files: b.jsonl, type: completion}
mix_strategy: concat
"""
    given = text.replace(", weight: 1", "").replace(", weight: 2", "")
    found = config(tmp_path, given)
    assert found["datasets"] == [
        {"path": str(tmp_path / "a.jsonl"), "columns": {"instruction": "train"}},
        {"path": "org/data", "split": "train", "name": "org"},
        {"path": str(tmp_path / "b.jsonl"), "data_format": "text", "columns": {"text": "text"}},
    ]
    assert found["dataset_prepared_path"] == str(tmp_path / "prepared")


def test_a_template_is_a_file_of_the_config_or_a_name(tmp_path: Path) -> None:
    (tmp_path / "chatml").mkdir()
    data = "train_file: a.jsonl\nval_size: 1\nchat_template: "
    assert config(tmp_path, data + "my.jinja")["chat_template"] == str(tmp_path / "my.jinja")
    from trainers.lora import LoraOptions

    for name in ("chatml", "llama3"):
        options = LoraOptions.model_validate(config(tmp_path, data + name))
        assert options.chat_template == name
