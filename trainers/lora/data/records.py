"""Reads rows from data files, each with the place it came from.

Knows JSON, JSONL, CSV, Parquet and lines of text, and nothing of what the rows mean.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.lora.data.bad_rows import BadRows


@dataclass(frozen=True)
class Record:
    """One row of a data file.

    Attributes:
        where: File and line, as in ``train.jsonl:3``; for files without lines file and row.
        fields: The row's columns.
    """

    where: str
    fields: Mapping[str, object]


def read_records(path: Path, bad_rows: BadRows | None = None) -> list[Record]:
    """Return all rows of a file, by its ending.

    Raises:
        ValueError: The file is missing, empty, torn, or of another kind; names file and line. A
            single bad row of it is for ``bad_rows`` to decide.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{path}: {what}. Give a data file ({', '.join(FILE_KINDS)}).")
    if path.suffix.lower() not in FILE_KINDS:
        raise ValueError(
            f"{path}: data files of kind {path.suffix!r} are not read. Known: "
            f"{', '.join(FILE_KINDS)}. Convert it to one row a line of JSON (.jsonl)."
        )
    bad_rows = bad_rows or BadRows()
    num_skipped = bad_rows.num_skipped
    try:
        records = list(_READERS[path.suffix.lower()](path, bad_rows))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}.") from None
    if not records and bad_rows.num_skipped == num_skipped:
        raise ValueError(f"{path}: the file has no rows.")
    return records


def _read_json(path: Path, bad_rows: BadRows) -> Iterator[Record]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _read_jsonl(path, bad_rows)  # rows on lines, in a file that is named .json
            return
        raise ValueError(
            f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}. Is the file cut off?"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON that can be read: {error}.") from None
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of rows, found {_kind(rows)}.")
    for number, row in enumerate(rows, start=1):
        yield from _record(f"{path}, row {number}", row, bad_rows)


def _read_jsonl(path: Path, bad_rows: BadRows) -> Iterator[Record]:
    with path.open("rb") as lines:  # as bytes, so that a torn character is one line's matter
        for number, raw in enumerate(lines, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                bad_rows.refuse(
                    ValueError(
                        f"{where}: not UTF-8 text ({error.reason} at byte {error.start} of the "
                        f"line). Save the file as UTF-8."
                    )
                )
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                bad_rows.refuse(
                    ValueError(
                        f"{where}:{error.colno}: not JSON: {error.msg}. Expected one object a "
                        f"line, found {_shorten(line)}. Is the line cut off?"
                    )
                )
                continue
            except (ValueError, RecursionError) as error:  # a number of 5000 digits, 1000 brackets
                bad_rows.refuse(ValueError(f"{where}: not JSON that can be read: {error}."))
                continue
            yield from _record(where, row, bad_rows)


def _read_csv(path: Path, bad_rows: BadRows) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)  # the default refuses texts of 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            columns = reader.fieldnames or ()
        except csv.Error as error:
            raise ValueError(f"{path}:1: not CSV: {error}.") from None
        if twice := sorted(name for name, count in Counter(columns).items() if count > 1):
            raise ValueError(f"{path}:1: the column {twice[0]!r} is there twice. Rename one.")
        while True:
            first, last = reader.reader.line_num + 1, reader.reader
            try:
                row = next(reader, None)
            except csv.Error as error:
                bad_rows.refuse(
                    ValueError(
                        f"{path}:{first}: not CSV: {error}, in the row of lines {first} to "
                        f"{last.line_num}. Is a quote missing? Inside a quoted text a quote is "
                        f"written twice."
                    )
                )
                continue
            if row is None:
                return
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                bad_rows.refuse(
                    ValueError(
                        f"{where}: expected {len(columns)} columns as in the header, found "
                        f"{'more' if None in row else 'fewer'}. Is a comma or a quote missing?"
                    )
                )
                continue
            yield Record(where, row)


def _read_parquet(path: Path, _bad_rows: BadRows) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Of this file alone: a folder's name like a=b would become a column.
        table = pyarrow.parquet.ParquetFile(path).read()
        rows: list[dict[str, Any]] = table.to_pylist()
    except OSError:  # of the disk, or of a torn file: told with the path
        raise
    except (pyarrow.ArrowException, ValueError, OverflowError, TypeError, LookupError) as error:
        # Its values may be beyond what Python has: dates of the year 90000, zones that are unknown.
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: not a Parquet file that can be read: {type(error).__name__}: {reason}."
        ) from None
    for number, row in enumerate(rows, start=1):
        yield Record(f"{path}, row {number}", row)


def _read_text(path: Path, _bad_rows: BadRows) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Record(f"{path}:{number}", {"text": line.rstrip("\n")})


def _record(where: str, row: object, bad_rows: BadRows) -> Iterator[Record]:
    if isinstance(row, dict):
        yield Record(where, row)
    else:
        bad_rows.refuse(
            ValueError(f"{where}: expected an object with named columns, found {_kind(row)}.")
        )


def _kind(value: object) -> str:
    return f"{type(value).__name__} {_shorten(repr(value))}"


def _shorten(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 60 else f"{text[:57]}..."


_READERS: Mapping[str, Callable[[Path, BadRows], Iterator[Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}

FILE_KINDS = tuple(_READERS)
"""Endings of the files that are read."""
