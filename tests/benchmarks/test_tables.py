"""The page on packing shows what was measured, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import PAGES
from benchmarks.conditions import Conditions
from benchmarks.figures import Figure, at_least, read_figures, write_figures
from benchmarks.publish import results
from benchmarks.tables import (
    END,
    NOT_YET,
    begin_mark,
    figures_markdown,
    replace_figures,
    update_page,
)

CONDITIONS = Conditions("0123456789ab", True, 2, "a processor", 2, {})
BEGIN = begin_mark("packing")
EMPTY = f"before\n{BEGIN}\n{END}\nafter\n"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_figures_that_were_measured(name: str) -> None:
    page = PAGES[name].read_text(encoding="utf-8")
    assert page == replace_figures(page, name, read_figures(results(name))), (
        "type: python -m benchmarks"
    )


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_a_place_for_figures(name: str) -> None:
    page = PAGES[name].read_text(encoding="utf-8")
    assert NOT_YET in replace_figures(page, name, {})


def test_figures_replace_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    results, page = tmp_path / "packing.json", tmp_path / "page.md"
    page.write_text(EMPTY)
    figures = [
        Figure("a | b", (2.0, 2.5, 3.0), at_least(2.0)),
        Figure("slow", (1.0,), at_least(2.0), "why\nthat is"),
    ]
    write_figures(results, "speed", figures, CONDITIONS)
    for _ in range(2):
        update_page(page, "packing", read_figures(results))
        assert page.read_text() == (
            f"before\n{BEGIN}\n"
            "**Speed**, at 0123456 with changes, 2 threads on a processor\n\n"
            "| figure | median | range | goal | note |\n"
            "| --- | ---: | ---: | --- | --- |\n"
            "| a \\| b | 2.5 | 2 to 3 | at least 2 |  |\n"
            "| slow | 1 |  | **at least 2: missed** | why that is |\n"
            f"{END}\nafter\n"
        )


def test_a_value_that_is_no_number_is_said(tmp_path: Path) -> None:
    results = tmp_path / "packing.json"
    write_figures(results, "p", [Figure("f", (float("nan"),), at_least(1.0))], CONDITIONS)
    assert "| f | none |  | **at least 1: missed** |" in figures_markdown(read_figures(results))


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}\n{BEGIN}", EMPTY + BEGIN, EMPTY + EMPTY])
def test_a_page_without_one_place_for_them_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="needs the line"):
        replace_figures(page, "packing", {})
