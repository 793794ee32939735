"""A YAML file as plain values that remember where they stood.

Reads the text and nothing else: what the keys mean is the business of ``hpo.spec_file``. No tag and
no object is ever constructed from a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from hpo.errors import SpecError
from search_spaces.problems import Problem

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 50
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool")}
MAX_VALUES = 200_000


@dataclass(frozen=True)
class Document:
    """A parsed file.

    Attributes:
        path: The file, for messages.
        values: Plain dicts, lists and scalars.
    """

    path: Path
    values: dict[str, object]
    _marked: CommentedMap

    def position(self, problem: Problem) -> tuple[int, int]:
        """Return line and column, from 1, of the key or value that a problem points at.

        A path that leads nowhere (a key that is missing) points at the deepest part that exists.
        """
        node: object = self._marked
        line, column = 1, 1
        for depth, step in enumerate(problem.path):
            last = depth == len(problem.path) - 1
            if isinstance(node, CommentedMap) and step in node:
                place = node.lc.key(step) if last and problem.at_key else _value_place(node, step)
            elif isinstance(node, CommentedSeq) and isinstance(step, int) and step < len(node):
                place = node.lc.item(step)
            else:
                break
            line, column = place[0] + 1, place[1] + 1
            node = node[step]
        return line, column

    def error(self, problems: Iterable[Problem]) -> SpecError:
        """Return one error that lists every problem as ``file:line:column: message``."""
        placed = sorted({(*self.position(p), _name(p.path), p.message) for p in problems})
        lines = [
            f"{self.path}:{line}:{column}: {name}{message}"
            for line, column, name, message in placed
        ]
        return SpecError("\n".join(lines))


def read_document(path: Path) -> Document:
    """Read a YAML file whose root is a mapping.

    Raises:
        SpecError: The file is missing, is not YAML, has tags, duplicate keys or no mapping at its
            root; with line and column.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would wait for ever
            raise SpecError(f"{path}: is no file. Give the path of a study's YAML file.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SpecError(f"{path}: larger than {MAX_FILE_BYTES} bytes; this is no study's file.")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file. Give the path of a study's YAML file.") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: is a folder. Give the path of a study's YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    try:
        marked = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        what = " ".join(str(error.problem or error.context).split())
        raise SpecError(f"{path}:{place}: not valid YAML: {what}") from None
    except (YAMLError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise SpecError(f"{path}:1:1: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(marked, CommentedMap):
        raise SpecError(
            f"{path}:1:1: must be a mapping of keys to values, as in 'study: my-study'."
        )
    values = _plain(marked, path, 0, itertools.count())
    assert isinstance(values, dict)
    return Document(path=path, values=values, _marked=marked)


def _plain(node: object, path: Path, depth: int, counter: Iterator[int]) -> object:
    if depth > MAX_DEPTH:
        raise SpecError(f"{path}: nested deeper than {MAX_DEPTH} levels.")
    if next(counter) > MAX_VALUES:  # anchors that repeat anchors grow without bound
        raise SpecError(f"{path}: more than {MAX_VALUES} values.")
    tag = getattr(getattr(node, "tag", None), "value", None)
    if isinstance(node, TaggedScalar) or (tag and str(tag) not in PLAIN_TAGS):
        line = getattr(getattr(node, "lc", None), "line", None)
        place = "" if line is None else f":{line + 1}"
        raise SpecError(f"{path}{place}: the YAML tag {tag} is not allowed here; remove it.")
    if isinstance(node, Mapping):
        for key in node:
            if not isinstance(key, str):
                line = node.lc.line + 1 if isinstance(node, CommentedMap) else 1
                raise SpecError(f"{path}:{line}: the key {key!r} is no text; put it in quotes.")
        return {str(key): _plain(value, path, depth + 1, counter) for key, value in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str | bytes):
        return [_plain(value, path, depth + 1, counter) for value in node]
    if node is None or isinstance(node, bool):
        return node
    for kind in (int, float, str):  # ruamel's scalars are subclasses that remember their spelling
        if isinstance(node, kind):
            return kind(node)
    raise SpecError(
        f"{path}: the value {str(node)!r} is neither text nor a number; put it in quotes."
    )


def _value_place(node: CommentedMap, key: str | int) -> tuple[int, int]:
    place: tuple[int, int] = node.lc.value(key)
    return place


def _name(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path)) + ": " if path else ""
