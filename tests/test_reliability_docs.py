"""What the page on reliability names is there: tests, files, points and actions of faults."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from hpo import faults

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")]
NAMED = sorted(set(re.findall(r"`((?:tests|hpo|benchmarks)/[\w/]+\.py)(?:::([\w:]+))?`", PAGE)))


def test_the_table_names_tests() -> None:
    assert {"tests/kills/test_matrix.py", "tests/soak/__main__.py"} <= {file for file, _ in NAMED}
    assert len([1 for _, name in NAMED if name]) >= 5


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda part: part.rpartition("/")[2] or "-")
def test_a_test_that_the_page_names_exists(file: str, name: str) -> None:
    body: list[ast.stmt] = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for part in name.split("::") if name else []:
        found = [node for node in body if getattr(node, "name", None) == part]
        assert found, f"{file} has no {part}"
        body = getattr(found[0], "body", [])


def test_the_faults_that_the_page_arms_can_be_armed() -> None:
    armed = re.findall(r'HPO_FAULTS="([^"]+)"', PAGE)
    assert armed
    for text in armed:
        faults.arm(text)
    faults.arm("")
    assert all(f"`{action}`" in PAGE for action in faults.ACTIONS if action != "kill")
