"""The docstring data: functions of Python's own standard library -> their one-line docstring.

Real text that is on every machine. The files are in Alpaca format. How many rows there are
depends on the Python that runs this; their order and their split do not depend on anything else.
"""

import ast
import hashlib
import json
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hpo.demo.model import DemoError

INSTRUCTION = "Write a one-line docstring for this Python function."
MAX_CHARACTERS = 400
MIN_WORDS = 3  # "days" or "-self" teach nothing
MAX_ROWS_PER_MODULE = 30  # or `operator` alone would be a third of the validation file
# Tests, and what is installed beside the library.
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class Row:
    """One function without its docstring, and that docstring."""

    module: str
    source: str
    docstring: str

    def alpaca(self) -> dict[str, str]:
        """Return the row as it stands in the files."""
        return {"instruction": INSTRUCTION, "input": self.source, "output": self.docstring}


def write_docstrings(out: Path) -> Path:
    """Write train.json and validation.json to ``<out>/docstrings`` and return that folder."""
    library = Path(sysconfig.get_path("stdlib"))
    train, validation = split(collect(library))
    if not train or not validation:
        raise DemoError(f"found no Python source of the standard library in {library}")
    folder = out / "docstrings"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "train.json", train)
    _write(folder / "validation.json", validation)
    return folder


def collect(library: Path) -> list[Row]:
    """Return the rows of all modules below a folder, each source and docstring once."""
    rows = []
    seen: set[str] = set()  # sources and docstrings
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if SKIPPED.intersection(relative.parts):
            continue
        taken = 0
        for row in rows_of_module(relative.as_posix(), path.read_bytes()):
            if taken < MAX_ROWS_PER_MODULE and seen.isdisjoint((row.source, row.docstring)):
                seen.update((row.source, row.docstring))
                rows.append(row)
                taken += 1
    return rows


def split(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Return (train, validation): a tenth of the modules is held out, whole.

    Both are shuffled by a hash of the row, so that the first rows are a fair sample.
    """
    shuffled = sorted(rows, key=lambda row: _hash(row.module + "\n" + row.source))
    train = [row for row in shuffled if _hash(row.module) % 10]
    validation = [row for row in shuffled if not _hash(row.module) % 10]
    return train, validation


def rows_of_module(module: str, source: bytes) -> Iterator[Row]:
    """Yield the short functions of one module that have a one-line docstring."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # the library ships a few files that are meant to be broken
    lines = source.decode("utf-8", errors="replace").splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            row = _row(module, node, lines)
            if row is not None:
                yield row


def _row(module: str, node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> Row | None:
    docstring = (ast.get_docstring(node) or "").strip()
    if "\n" in docstring or len(docstring.split()) < MIN_WORDS or len(node.body) < 2:
        return None
    quoted = node.body[0]
    assert node.end_lineno is not None
    assert quoted.end_lineno is not None
    if quoted.lineno == node.lineno or node.body[1].lineno == quoted.end_lineno:
        return None  # shares its line with code
    kept = lines[node.lineno - 1 : quoted.lineno - 1] + lines[quoted.end_lineno : node.end_lineno]
    source = textwrap.dedent("\n".join(kept)).strip()
    if len(source) > MAX_CHARACTERS:
        return None
    return Row(module, source, docstring)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _write(path: Path, rows: list[Row]) -> None:
    # One row a line, so that the file can be read and compared.
    body = ",\n".join(json.dumps(row.alpaca(), ensure_ascii=False) for row in rows)
    path.write_text(f"[\n{body}\n]\n", encoding="utf-8")
