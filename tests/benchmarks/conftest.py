"""A tiny model and its data, of which the benchmarks' own code is tried."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_model import CHAT_TEMPLATE, alpaca_rows, save_model, save_tokenizer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread, so that a process's own time says what it computed."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny-llama")
    save_model(folder, save_tokenizer(folder, CHAT_TEMPLATE))
    return str(folder)


@pytest.fixture(scope="session")
def text() -> str:
    return "\n".join(" ".join(map(str, row.values())) for row in alpaca_rows())


@pytest.fixture(scope="session")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows()))
    return path
