"""Figures as Markdown: the parts of a page between two marks are what the JSON files say.

Measures nothing. A part of the benchmark that was never run is not in the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

END = "<!-- end of figures -->"
NOT_YET = "Not measured yet."

_COMMIT_DIGITS = 7


def figures_markdown(document: Mapping[str, Any]) -> str:
    """Return a table for each part of a document that ``figures.read_figures`` gave."""
    parts = [_part(name, part) for name, part in document.items()]
    return "\n\n".join(parts) if parts else NOT_YET


def begin_mark(name: str) -> str:
    """Return the line below which a page has the figures of a benchmark."""
    return f"<!-- figures of {name} -->"


def replace_figures(page: str, name: str, document: Mapping[str, Any]) -> str:
    """Return a page with a benchmark's figures between its marks, and else as it is.

    Raises:
        ValueError: The page has no such mark, or two, or no end below it.
    """
    mark = begin_mark(name)
    before, begin, rest = page.partition(mark)
    _, end, after = rest.partition(END)
    if not (begin and end) or mark in rest:
        raise ValueError(f"the page needs the line {mark} once, and below it the line {END}.")
    return f"{before}{mark}\n{figures_markdown(document)}\n{END}{after}"


def update_page(path: Path, name: str, document: Mapping[str, Any]) -> None:
    """Put a benchmark's figures into a page on the disk."""
    page = path.read_text(encoding="utf-8")
    path.write_text(replace_figures(page, name, document), encoding="utf-8")


def _part(name: str, part: Mapping[str, Any]) -> str:
    conditions = part["conditions"]
    commit = conditions["commit"][:_COMMIT_DIGITS]
    commit += " with changes" if conditions["is_dirty"] else ""
    head = (
        f"**{name.capitalize()}**, at {commit}, {conditions['threads']} threads on "
        f"{conditions['processor']}"
    )
    rows = [
        _row("figure", "median", "range", "goal", "note"),
        _row("---", "---:", "---:", "---", "---"),
        *(_row(*_cells(figure)) for figure in part["figures"]),
    ]
    return "\n".join([head, "", *rows])


def _cells(figure: Mapping[str, Any]) -> Iterable[str]:
    yield _plain(figure["name"])
    yield _number(figure["value"])
    low, high = map(_number, figure["range"])
    yield f"{low} to {high}" if figure["repetitions"] > 1 else ""
    goal = figure["goal"] or ""
    yield f"**{goal}: missed**" if figure["reached"] is False else goal
    yield _plain(figure["note"])


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _plain(text: str) -> str:
    """Return text as one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
