"""Puts all figures that were measured into the pages that explain them: ``python -m benchmarks``."""

from __future__ import annotations

from pathlib import Path

from benchmarks.conditions import ROOT
from benchmarks.figures import read_figures
from benchmarks.publish import results, tell
from benchmarks.tables import update_page

PAGES: dict[str, Path] = {
    "packing": ROOT / "docs" / "packing.md",
    "search": ROOT / "docs" / "benchmarks.md",
    "step": ROOT / "docs" / "benchmarks.md",
    "driver": ROOT / "docs" / "benchmarks.md",
}
"""Where the figures of each benchmark stand."""


def main() -> None:
    """Bring every page up to its files of figures."""
    for name, page in PAGES.items():
        update_page(page, name, read_figures(results(name)))
        tell(f"{page} shows the figures of {results(name)}")


if __name__ == "__main__":
    main()
