"""Reads rows from data files, each with the place it came from.

Knows JSON, JSONL, CSV and Parquet, and nothing of what the rows mean.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One row of a data file.

    Attributes:
        where: File and line, as in ``train.jsonl:3``; for files without lines file and row.
        fields: The row's columns.
    """

    where: str
    fields: Mapping[str, object]


def read_records(path: Path) -> list[Record]:
    """Return all rows of a file, by its ending.

    Raises:
        ValueError: The file is missing, empty, torn, or of another kind; names file and line.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{path}: {what}. Give a data file ({', '.join(_READERS)}).")
    if path.suffix.lower() not in _READERS:
        raise ValueError(
            f"{path}: data files of kind {path.suffix!r} are not read. Known: "
            f"{', '.join(_READERS)}. Convert it to one row a line of JSON (.jsonl)."
        )
    try:
        records = list(_READERS[path.suffix.lower()](path))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    if not records:
        raise ValueError(f"{path}: the file has no rows.")
    return records


def _read_json(path: Path) -> Iterator[Record]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _read_jsonl(path)  # rows on lines, in a file that is named .json
            return
        raise ValueError(
            f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}. Is the file cut off?"
        ) from None
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of rows, found {_kind(rows)}.")
    for number, row in enumerate(rows, start=1):
        yield _record(f"{path}, row {number}", row)


def _read_jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}:{number}:{error.colno}: not JSON: {error.msg}. Expected one object a "
                    f"line, found {_shorten(line)}. Is the line cut off?"
                ) from None
            yield _record(f"{path}:{number}", row)


def _read_csv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(
                    f"{where}: expected {len(reader.fieldnames or ())} columns as in the header, "
                    f"found {'more' if None in row else 'fewer'}. Is a comma or a quote missing?"
                )
            yield Record(where, row)


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a whole Parquet file: {error}.") from None
    for number, row in enumerate(rows, start=1):
        yield Record(f"{path}, row {number}", row)


def _record(where: str, row: object) -> Record:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with named columns, found {_kind(row)}.")
    return Record(where, row)


def _kind(value: object) -> str:
    return f"{type(value).__name__} {_shorten(repr(value))}"


def _shorten(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 60 else f"{text[:57]}..."


_READERS: Mapping[str, Callable[[Path], Iterator[Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
