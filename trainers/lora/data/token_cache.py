"""Keeps tokenised data on disk, so that trials and processes with the same data share the work.

A set of examples is two files, named by a hash of all that decides its tokens: the tokens as
safetensors, the rest and a checksum of both as JSON. Each is written whole or not at all; what is
torn, foreign or of another format is made again. A cache that cannot be written costs time only.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trainers.lora.data.encoding import IGNORE_INDEX, Encoder, Example
from trainers.lora.data.example_sets import ExampleSets, make_example_sets, sources_of
from trainers.lora.data.sources import Source
from trainers.lora.options import LoraOptions

CACHE_FORMAT = 1
"""Raised when tokens are made or kept in another way."""

_OPTIONS = (
    "on_bad_rows",
    "val_size",
    "data_seed",
    "max_train_samples",
    "eval_max_samples",
    "eval_set",
    "mix_strategy",
    "interleave_probs",
    "datasets",
)
"""Options that decide which rows become examples; those that decide their tokens are in the
encoder's fingerprint, the rows themselves in their sources'."""

_LOCK_WAIT_S = 600
"""How long to wait for another process that tokenises the same; then both do."""


def load_example_sets(options: LoraOptions, encoder: Encoder) -> tuple[ExampleSets, list[str]]:
    """Return the examples that the options name, from the cache if they are there, and notes.

    Raises:
        ValueError: A missing file, a bad row, or a set without anything to learn.
    """
    train, validation = sources_of(options)
    folder = cache_folder(options)
    key = _key(options, encoder, train, validation)

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sets = make_example_sets(options, encoder, train, validation)
        return sets, [_not_kept(folder, error)]
    cached = _read(folder, key)
    if cached is not None:
        return cached, []
    with _lock(folder / f"{key}.lock"):
        cached = _read(folder, key)
        if cached is not None:
            return cached, []
        sets = make_example_sets(options, encoder, train, validation)
        try:
            _write(folder, key, sets)
        except OSError as error:
            return sets, [_not_kept(folder, error)]
        return sets, []


def _not_kept(folder: Path, error: OSError) -> str:
    return f"tokenised data is not kept: {folder} cannot be used ({error.strerror or error})"


def cache_folder(options: LoraOptions) -> Path:
    """Return where tokenised data is kept."""
    if options.dataset_prepared_path is not None:
        return Path(options.dataset_prepared_path).expanduser()
    return Path(os.environ.get("HPO_CACHE") or "~/.cache/hpo").expanduser() / "tokenized"


def _key(
    options: LoraOptions,
    encoder: Encoder,
    train: Sequence[Source],
    validation: Mapping[str, Sequence[Source]],
) -> str:
    chosen = options.model_dump(mode="json", include=set(_OPTIONS))
    parts = [
        str(CACHE_FORMAT),
        *(f"{name} {version(name)}" for name in ("tokenizers", "transformers")),
        json.dumps(chosen, sort_keys=True),
        *encoder.fingerprint(),
        *_describe("train", train),
        *(part for name, sources in validation.items() for part in _describe(name, sources)),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _describe(name: str, sources: Sequence[Source]) -> Iterator[str]:
    yield f"set {name}"
    for source in sources:
        yield json.dumps([source.entry.model_dump(mode="json"), source.layout.data_format])
        yield json.dumps(source.fingerprint())


def _write(folder: Path, key: str, sets: ExampleSets) -> None:
    groups = {"train": sets.train, **{f"validation {k}": v for k, v in sets.validation.items()}}
    examples = [example for group in groups.values() for example in group]
    tokens = save(_as_tensors(examples))
    body = {
        "format": CACHE_FORMAT,
        "key": key,
        "tokens_sha256": hashlib.sha256(tokens).hexdigest(),
        "sizes": [len(group) for group in groups.values()],
        "validation": list(sets.validation),
        "notes": list(sets.notes),
        "num_skipped_rows": sets.num_skipped_rows,
        "where": [example.where for example in examples],
    }
    text = json.dumps(body)
    _replace(folder / f"{key}.safetensors", tokens)
    sealed = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "body": text}
    _replace(folder / f"{key}.json", json.dumps(sealed).encode())


def _read(folder: Path, key: str) -> ExampleSets | None:
    """Return what is kept; None if there is nothing, or nothing whole."""
    try:
        sealed = json.loads((folder / f"{key}.json").read_bytes())
        text = sealed["body"]
        body: dict[str, Any] = json.loads(text)
        tokens = (folder / f"{key}.safetensors").read_bytes()
        if (
            hashlib.sha256(text.encode()).hexdigest() != sealed["sha256"]
            or (body["format"], body["key"]) != (CACHE_FORMAT, key)
            or hashlib.sha256(tokens).hexdigest() != body["tokens_sha256"]
        ):
            return None
        examples = _from_tensors(load(tokens), body["where"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None
    groups = []
    for size in body["sizes"]:
        groups.append(tuple(examples[:size]))
        examples = examples[size:]
    return ExampleSets(
        train=groups[0],
        validation=dict(zip(body["validation"], groups[1:], strict=True)),
        notes=tuple(body["notes"]),
        num_skipped_rows=body["num_skipped_rows"],
    )


def _as_tensors(examples: Sequence[Example]) -> dict[str, Tensor]:
    assert not any(example.lengths for example in examples), "packed after the cache"
    return {
        "input_ids": torch.cat([example.input_ids for example in examples]),
        "is_target": torch.cat([example.labels != IGNORE_INDEX for example in examples]),
        "lengths": torch.tensor([len(example.input_ids) for example in examples]),
        "truncated": torch.tensor([example.truncated for example in examples]),
        "num_skipped_answers": torch.tensor([e.num_skipped_answers for e in examples]),
        "prompt_lengths": torch.tensor([example.prompt_length for example in examples]),
    }


def _from_tensors(tensors: Mapping[str, Tensor], where: Sequence[str]) -> list[Example]:
    lengths = tensors["lengths"].tolist()
    input_ids = tensors["input_ids"]
    labels = torch.where(tensors["is_target"], input_ids, torch.full_like(input_ids, IGNORE_INDEX))
    return [
        Example(ids.clone(), label.clone(), bool(cut), int(skipped), place, int(prompt))
        for ids, label, cut, skipped, place, prompt in zip(
            input_ids.split(lengths),
            labels.split(lengths),
            tensors["truncated"].tolist(),
            tensors["num_skipped_answers"].tolist(),
            where,
            tensors["prompt_lengths"].tolist(),
            strict=True,
        )
    ]


def _replace(path: Path, content: bytes) -> None:
    """Put a whole file in place: it is there with all of its content, or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process tokenise while others wait; without a lock if none can be had."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_LOCK_WAIT_S)
    except (Timeout, OSError, NotImplementedError):  # a hung process, or a store without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()
