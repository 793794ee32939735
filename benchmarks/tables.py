"""Figures as Markdown: the part of a page between two marks is what the JSON file says.

Measures nothing. A part of the benchmark that was never run is not in the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

BEGIN = "<!-- packing figures -->"
END = "<!-- end -->"
NOT_YET = "Not measured yet."

_COMMIT_DIGITS = 7


def figures_markdown(document: Mapping[str, Any]) -> str:
    """Return a table for each part of a document that ``figures.read_figures`` gave."""
    parts = [_part(name, part) for name, part in document.items()]
    return "\n\n".join(parts) if parts else NOT_YET


def replace_figures(page: str, document: Mapping[str, Any]) -> str:
    """Return a page with a document's figures between the marks, and else as it is.

    Raises:
        ValueError: The page has not each mark once, in their order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise ValueError(f"the page needs the line {BEGIN} and below it the line {END}, each once.")
    return f"{before}{BEGIN}\n{figures_markdown(document)}\n{END}{after}"


def update_page(path: Path, document: Mapping[str, Any]) -> None:
    """Put a document's figures into a page on the disk."""
    page = path.read_text(encoding="utf-8")
    path.write_text(replace_figures(page, document), encoding="utf-8")


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
