"""What the page on packing names is there: files, options, links."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hpo.spec import StudySpec
from trainers.lora.options import LoraOptions

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "packing.md"
PACK = ROOT / "trainers" / "lora" / "pack"
TEXT = re.sub(r"```.*?```", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
SPANS = sorted(set(re.findall(r"`([^`]+)`", TEXT)))
LINKS = sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT)))

FILES = [span for span in SPANS if re.fullmatch(r"[\w/]+\.py|[\w/]+/", span)]
OPTIONS = [span for span in SPANS if re.fullmatch(r"[a-z]+_[a-z_]+(: .*)?|[a-z]+: .+", span)]
OF_RESOURCES = {"gpu"}


def test_the_page_names_files_and_options() -> None:
    assert len(FILES) > len(list(PACK.glob("*.py")))
    assert {"use_dora", "resources: {gpu: 1}"} <= set(OPTIONS)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_the_page_names_is_there(name: str) -> None:
    assert (ROOT / name).exists() or (PACK / name).exists()


@pytest.mark.parametrize("name", sorted(path.name for path in PACK.glob("[!_]*.py")))
def test_every_file_of_the_pack_is_explained(name: str) -> None:
    assert f"- `{name}`: " in TEXT


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_the_page_names_exists(option: str) -> None:
    known = {*LoraOptions.model_fields, *StudySpec.model_fields, *OF_RESOURCES}
    assert option.partition(":")[0] in known


@pytest.mark.parametrize("link", LINKS)
def test_a_link_of_the_page_leads_somewhere(link: str) -> None:
    assert (PAGE.parent / link).exists()


def test_the_drawing_needs_nothing_from_elsewhere() -> None:
    text = (ROOT / "docs" / "packing.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "href" not in text
    assert "@import" not in text
    assert re.findall(r"https?://[^\"' ]+", text) == ["http://www.w3.org/2000/svg"]
