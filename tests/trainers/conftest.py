"""The tiny model and its data as fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.new_process import printed_by
from tests.tiny_model import CHAT_TEMPLATE, alpaca_rows, save_model, save_tokenizer

WriteRows = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests' tokenised data out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread: on a busy machine more wait for each other, ten times as long.

    Another core is then spare, to validate beside training.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instruction model, with a chat template."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    save_model(folder, save_tokenizer(folder, CHAT_TEMPLATE))
    return folder


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture(scope="session")
def plain_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    """The tokenizer of a base model: without a chat template."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("plain")
    save_tokenizer(folder, None)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows()))
    return path


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Write rows to a JSONL file of this test's folder."""

    def write(*rows: object, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture(scope="session")
def fixed(model_folder: Path, train_file: Path) -> dict[str, object]:
    """What all trials of the tests share: float32 on the CPU."""
    return {
        "model_name_or_path": str(model_folder),
        "dtype": "float32",
        "train_file": str(train_file),
        "val_size": 4,
        "max_length": 64,
    }


@pytest.fixture(scope="session")
def loaded_by_a_trainer(fixed: dict[str, object]) -> frozenset[str]:
    """The modules that are loaded when a process has made a trainer and done no more."""
    code = (
        f"import sys; from trainers.lora import LoraTrainer; LoraTrainer({fixed!r});"
        "print(*sys.modules)"
    )
    return frozenset(printed_by(code).split())
