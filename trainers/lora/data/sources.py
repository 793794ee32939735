"""Where rows come from: files, folders, and datasets of the Hugging Face hub.

Knows which options name data, and how to tell whether it has changed. Nothing of what rows mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trainers.lora.data.bad_rows import BadRows
from trainers.lora.data.records import FILE_KINDS, Record, read_records
from trainers.lora.data.samples import Layout
from trainers.lora.options import LoraOptions
from trainers.lora.options.dataset_entry import DatasetEntry

_FOLDER_KINDS = tuple(kind for kind in FILE_KINDS if kind != ".txt")
"""What is data in a folder; a text file there is as likely a licence."""

_NO_DATA = frozenset({"dataset_info.json", "dataset_infos.json"})

ONLY_SET = "validation"
"""Name of the validation set where there is only one, without a name."""


@dataclass(frozen=True)
class Source:
    """One dataset: some files, or a dataset that the ``datasets`` library loads.

    Attributes:
        option: By which the user named it.
        entry: What the user said of it.
        layout: How its rows are laid out.
        files: Its files; None if ``datasets`` loads it.
    """

    option: str
    entry: DatasetEntry
    layout: Layout
    files: tuple[Path, ...] | None

    def read(self, bad_rows: BadRows) -> Iterator[list[Record]]:
        """Yield the rows of each file; a file's rows have one layout."""
        if self.files is not None:
            for path in self.files:
                yield read_records(path, bad_rows)
            return
        place = f"{self.entry.path}[{self._split}]"
        records = [
            Record(f"{place}, row {number}", row) for number, row in enumerate(self._rows, start=1)
        ]
        if not records:
            raise ValueError(f"{self.option}: {place} has no rows.")
        yield records

    def fingerprint(self) -> list[str]:
        """Return what changes when any of the rows or their places do."""
        if self.files is None:
            return [self.entry.path, str(self.entry.name), self._split, self._rows._fingerprint]
        return [f"{path} {_hash_file(path)}" for path in self.files]

    @property
    def _split(self) -> str:
        return self.entry.split or "train"

    @cached_property
    def _rows(self) -> Any:
        return _load(self.option, self.entry.path, self.entry.name, self._split)


def train_sources(options: LoraOptions) -> list[Source]:
    """Return where the training rows are.

    Raises:
        ValueError: A file or folder is missing, holds no data, or is named twice.
    """
    if options.dataset_name is not None:
        return [_hub_source(options, "dataset_name", options.dataset_train_split)]
    if options.datasets is not None:
        sources = [_source("datasets", entry, options) for entry in options.datasets]
        _refuse_repeats(
            "datasets",
            (
                (str(path.resolve()), str((source.entry.name, source.entry.split, source.layout)))
                for source in sources
                for path in source.files or (Path(source.entry.path),)
            ),
        )
        return sources
    assert options.train_file is not None, "the options ask for one of the three"
    given = options.train_file
    paths = (given,) if isinstance(given, str) else given
    entries = [DatasetEntry(path=path) for path in paths]
    sources = [_source("train_file", entry, options, only_files=True) for entry in entries]
    _refuse_repeats(
        "train_file",
        ((str(path.resolve()), "") for source in sources for path in source.files or ()),
    )
    return sources


def validation_sources(options: LoraOptions) -> dict[str, list[Source]]:
    """Return where each validation set's rows are; none if they are a part of the training rows."""
    if options.dataset_eval_split is not None:
        return {ONLY_SET: [_hub_source(options, "dataset_eval_split", options.dataset_eval_split)]}
    given = options.validation_file
    if given is None:
        return {}
    sets = given if isinstance(given, Mapping) else {ONLY_SET: given}
    found = {}
    for name, value in sets.items():
        parts = (value,) if isinstance(value, str | DatasetEntry) else value
        entries = [DatasetEntry(path=p) if isinstance(p, str) else p for p in parts]
        found[name] = [_source("validation_file", entry, options) for entry in entries]
    return found


def _hub_source(options: LoraOptions, option: str, split: str) -> Source:
    assert options.dataset_name is not None
    entry = DatasetEntry(path=options.dataset_name, name=options.dataset_config_name, split=split)
    return Source(option, entry, Layout(options.data_format), None)


def _source(
    option: str, entry: DatasetEntry, options: LoraOptions, only_files: bool = False
) -> Source:
    layout = Layout(entry.data_format or options.data_format, entry.columns, entry.roles)
    path = Path(entry.path).expanduser()
    named_part = entry.name is not None or entry.split is not None
    if path.is_dir() and (named_part or _is_saved_dataset(path)):
        return Source(option, entry, layout, None)
    if path.exists():
        if named_part:
            raise ValueError(
                f"{option}: {path} is a file, which has no split or configuration, but "
                f"{entry.split or entry.name!r} of it is asked for. Leave split and name out."
            )
        return Source(option, entry, layout, _files(option, path))
    if only_files or _looks_like_a_file(entry.path):
        raise ValueError(
            f"{option}: {path}: does not exist. Give a data file ({', '.join(FILE_KINDS)}) or a "
            f"folder of them; a dataset of the hub goes by dataset_name."
        )
    return Source(option, entry, layout, None)


def _files(option: str, path: Path) -> tuple[Path, ...]:
    if not path.is_dir():
        return (path,)
    files = tuple(
        sorted(
            file
            for file in path.iterdir()
            if file.suffix.lower() in _FOLDER_KINDS
            and file.name not in _NO_DATA
            and not file.name.startswith(".")
            and file.is_file()
        )
    )
    if not files:
        raise ValueError(
            f"{option}: the folder {path} has no data file ({', '.join(_FOLDER_KINDS)}). Folders "
            f"in it are not searched: name them."
        )
    return files


def _looks_like_a_file(path: str) -> bool:
    known = Path(path).suffix.lower() in FILE_KINDS
    return known or path.startswith(("/", ".", "~")) or path.count("/") > 1 or "\\" in path


def _is_saved_dataset(path: Path) -> bool:
    """Return whether ``Dataset.save_to_disk`` wrote this folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _refuse_repeats(option: str, parts: Iterable[tuple[str, str]]) -> None:
    seen: set[tuple[str, str]] = set()
    for part in parts:
        if part in seen:
            raise ValueError(
                f"{option}: names {part[0]} twice, so that its rows could be trained and "
                f"validated on. Name it once; to see it more often give it a weight in 'datasets:'."
            )
        seen.add(part)


def _load(option: str, path: str, name: str | None, split: str) -> Any:
    """Load a dataset with the ``datasets`` library: from the hub, its cache, or a folder."""
    import datasets

    folder = Path(path).expanduser()
    try:
        if folder.is_dir() and _is_saved_dataset(folder):
            saved = datasets.load_from_disk(str(folder))
            if not isinstance(saved, datasets.DatasetDict):
                return saved
            if split not in saved:
                raise ValueError(f"Unknown split {split!r}. Should be one of {list(saved)}.")
            return saved[split]
        found = str(folder) if folder.is_dir() else path
        return datasets.load_dataset(found, name, split=split)
    except Exception as error:  # its loaders raise what they like: all of it is about this name
        part = f" ({name})" if name else ""
        raise ValueError(
            f"{option}: the split {split!r} of the dataset {path!r}{part} could not be loaded: "
            f"{type(error).__name__}: {' '.join(str(error).split())} Check the name, its "
            f"configuration and split. A dataset of the hub needs the network or a filled cache, "
            f"and a gated one 'hf auth login'; for files give train_file."
        ) from error


def _hash_file(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: does not exist. Give a data file ({', '.join(FILE_KINDS)}).")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}.") from None
