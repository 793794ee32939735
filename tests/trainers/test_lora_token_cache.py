"""The cache of tokenised data: shared where it may be, made again where it is not whole."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.test_lora_data import load
from trainers.lora.data import token_cache
from trainers.lora.data.dataset import Dataset
from trainers.lora.data.encoding import Encoder

Options = dict[str, object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


@pytest.fixture
def data(fixed: Options, tmp_path: Path, train_file: Path, folder: Path) -> Options:
    """Options with a training file of their own and a cache of their own."""
    own = tmp_path / "own.jsonl"
    own.write_text('{"instruction": "sa\n' + train_file.read_text())
    return {
        **fixed,
        "train_file": str(own),
        "on_bad_rows": "skip",
        "dataset_prepared_path": str(folder),
    }


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many samples have been tokenised."""
    encoded: list[object] = []
    encode = Encoder.encode

    def counting(self: Encoder, sample: Any) -> Any:
        encoded.append(sample)
        return encode(self, sample)

    monkeypatch.setattr(Encoder, "encode", counting)
    return lambda: len(encoded)


def told(dataset: Dataset) -> tuple[object, ...]:
    examples = [*dataset.train, *dataset.validation]
    return (
        dataset.digest,
        dataset.notes,
        dataset.num_skipped_rows,
        dataset.validation_sets,
        [(e.where, e.prompt_length, e.truncated, e.num_skipped_answers) for e in examples],
        [(e.input_ids.dtype, e.labels.dtype) for e in examples],
        [(e.input_ids.tolist(), e.labels.tolist()) for e in examples],
    )


def test_data_is_tokenised_once_and_comes_back_the_same(
    tokenizer: Any, data: Options, count: Callable[[], int], folder: Path
) -> None:
    first = load(tokenizer, data)
    assert count() == 24
    assert told(load(tokenizer, data)) == told(first)
    assert count() == 24
    # Neither the trial's own options nor packing make other tokens.
    load(tokenizer, data, seed=7, packing=True, train_sampling_strategy="sequential")
    assert count() == 24
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".lock", ".safetensors"]


def test_without_a_cache_the_data_is_the_same(
    tokenizer: Any, data: Options, folder: Path, tmp_path: Path
) -> None:
    cached = load(tokenizer, data)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, no folder")
    uncached = load(tokenizer, data, dataset_prepared_path=str(blocked))
    assert told(uncached)[0] == told(cached)[0]
    assert uncached.notes[-1].startswith(f"tokenised data is not kept: {blocked} cannot be used")
    assert uncached.notes[:-1] == cached.notes


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 32},
        {"val_size": 5},
        {"data_seed": 1},
        {"max_train_samples": 9},
        {"eval_max_samples": 2},
        {"default_system": "be brief"},
        {"chat_template": "bare"},
        {"train_on_prompt": True},
        {"mask_history": True},
    ],
    ids=str,
)
def test_options_that_change_tokens_are_told_apart(
    tokenizer: Any, data: Options, options: Options, count: Callable[[], int]
) -> None:
    load(tokenizer, data)
    before = count()
    changed = load(tokenizer, data, **options)
    assert count() > before
    assert told(load(tokenizer, data, **options)) == told(changed)


def test_changed_files_templates_and_tokenizers_are_told_apart(
    tokenizer: Any, data: Options, count: Callable[[], int], tmp_path: Path
) -> None:
    template = tmp_path / "t.jinja"
    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    text += "{% if add_generation_prompt %}assistant: {% endif %}"
    template.write_text(text)
    data = {**data, "chat_template": str(template)}
    digests = {load(tokenizer, data).digest}
    template.write_text(text.replace(": ", "> "))
    digests.add(load(tokenizer, data).digest)
    path = Path(str(data["train_file"]))
    path.write_text(path.read_text().replace("two", "2"))
    digests.add(load(tokenizer, data).digest)
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|im_start|>"
    load(other, data)
    assert len(digests) == 3
    assert count() == 4 * 24


def files(folder: Path) -> tuple[Path, Path]:
    (tokens,), (rest,) = folder.glob("*.safetensors"), folder.glob("*.json")
    return tokens, rest


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))


def forge(path: Path) -> None:
    """Change what is in a file of JSON, keeping it JSON."""
    sealed = json.loads(path.read_bytes())
    path.write_text(json.dumps({**sealed, "body": sealed["body"].replace("bad row", "good row")}))


@pytest.mark.parametrize(
    ("which", "damage"),
    [
        (0, halve),
        (0, flip),
        (0, Path.unlink),
        (0, lambda path: path.write_bytes(b"")),
        (1, halve),
        (1, flip),
        (1, forge),
        (1, Path.unlink),
        (1, lambda path: path.write_text("[]")),
        (1, lambda path: path.write_text('{"body": 3, "sha256": 4}')),
        (1, lambda path: path.write_bytes(b"\xff\xfe")),
    ],
)
def test_what_is_torn_or_foreign_is_made_again(
    tokenizer: Any,
    data: Options,
    count: Callable[[], int],
    folder: Path,
    which: int,
    damage: Callable[[Path], object],
) -> None:
    first = told(load(tokenizer, data))
    before = [path.read_bytes() for path in files(folder)]
    damage(files(folder)[which])
    assert told(load(tokenizer, data)) == first
    assert count() == 48
    assert [path.read_bytes() for path in files(folder)] == before
    load(tokenizer, data)
    assert count() == 48


def test_a_writer_that_dies_leaves_nothing_to_be_read(
    tokenizer: Any, data: Options, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_given: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(token_cache.os, "replace", die)
        with pytest.raises(Killed):
            load(tokenizer, data)
    assert not [path for path in folder.iterdir() if path.suffix != ".lock"]
    assert load(tokenizer, data).digest


def test_a_full_disk_costs_nothing_but_the_cache(
    tokenizer: Any, data: Options, count: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_given: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(token_cache.os, "fsync", full)
        dataset = load(tokenizer, data)
    assert "No space left on device" in dataset.notes[-1]
    assert count() == 24
    assert told(load(tokenizer, data))[0] == dataset.digest


def test_writers_at_the_same_time_do_the_work_once(
    tokenizer: Any, data: Options, count: Callable[[], int]
) -> None:
    digests: list[str] = []
    threads = [
        threading.Thread(target=lambda: digests.append(load(tokenizer, data).digest))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 4
    assert len(set(digests)) == 1
    assert count() == 24


def test_without_locks_writers_do_not_harm_each_other(
    tokenizer: Any, data: Options, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def no_lock(*_given: object, **_named: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(token_cache.FileLock, "acquire", no_lock)
    test_writers = [threading.Thread(target=load, args=(tokenizer, data)) for _ in range(3)]
    for thread in test_writers:
        thread.start()
    for thread in test_writers:
        thread.join()
    expected = told(load(tokenizer, {**data, "dataset_prepared_path": str(folder / "other")}))
    assert told(load(tokenizer, data)) == expected
    assert not list(folder.glob(".*"))


def test_the_default_folder_is_of_the_environment_or_home(
    fixed: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.lora.options import LoraOptions

    options = LoraOptions.model_validate(fixed)
    monkeypatch.setenv("HPO_CACHE", "/some/cache")
    assert token_cache.cache_folder(options) == Path("/some/cache/tokenized")
    monkeypatch.delenv("HPO_CACHE")
    monkeypatch.setenv("HOME", "/home/me")
    assert token_cache.cache_folder(options) == Path("/home/me/.cache/hpo/tokenized")
