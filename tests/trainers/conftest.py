"""A tiny random Llama with a tokenizer of its own, and data to train it on. No network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

NUM_ROWS = 24

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Rows = list[dict[str, object]]
WriteRows = Callable[..., Path]


def _alpaca_rows() -> Rows:
    numbers = ["one", "two", "three", "four", "five", "six"]
    numbers += ["seven", "eight", "nine", "ten", "eleven", "twelve"]
    return [
        {
            "instruction": f"say {numbers[i % 12]} and {numbers[(5 * i + 1) % 12]}",
            "input": "",
            "output": " ".join(numbers[i % 12 : i % 12 + 1 + i % 4]) + f" number {i}",
        }
        for i in range(NUM_ROWS)
    ]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests' tokenised data out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _save_tokenizer(folder: Path, chat_template: str | None) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [" ".join(map(str, row.values())) for row in _alpaca_rows()]
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        [*texts, "system\nuser\nassistant\n"],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", additional_special_tokens=special
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return len(fast)


def _save_model(folder: Path, vocab_size: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instruction model, with a chat template."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    _save_model(folder, _save_tokenizer(folder, CHAT_TEMPLATE))
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
    _save_tokenizer(folder, None)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in _alpaca_rows()))
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
