"""Where rows come from: files, folders, saved datasets, mixes, validation sets; and bad rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.trainers.test_lora_data import load
from trainers.lora.data.bad_rows import BadRows
from trainers.lora.data.dataset import Dataset
from trainers.lora.data.records import read_records
from trainers.lora.data.samples import Completion, read_samples
from trainers.lora.options import LoraOptions

WriteRows = Callable[..., Path]
Options = dict[str, object]


def texts(word: str, count: int) -> list[dict[str, str]]:
    return [{"text": f"{word} number {number}"} for number in range(count)]


@pytest.fixture
def no_data(fixed: Options) -> Options:
    """The shared options, without any that name data."""
    return {name: value for name, value in fixed.items() if name not in ("train_file", "val_size")}


def names(dataset: Dataset) -> Counter[str]:
    """How many training rows came from each file."""
    return Counter(place.split(":")[0] for place in dataset.where(range(len(dataset.train))))


def test_files_folders_and_lists_hold_the_same_rows(
    tokenizer: Any, no_data: Options, write_rows: WriteRows, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    (folder / "deeper").mkdir(parents=True)
    b = write_rows(*texts("two", 3), name="data/b.jsonl")
    a = write_rows(*texts("one", 4), name="data/a.JSONL")
    write_rows(*texts("none", 2), name="data/deeper/c.jsonl")
    write_rows(*texts("none", 2), name="data/.hidden.jsonl")
    (folder / "README.md").write_text("none")
    (folder / "LICENSE.txt").write_text("none")
    (folder / "dataset_info.json").write_text('{"a": {"file_name": "a.JSONL"}}')
    whole = load(tokenizer, no_data, train_file=str(folder), val_size=2)
    assert whole.digest == load(tokenizer, no_data, train_file=[str(a), str(b)], val_size=2).digest
    assert whole.digest != load(tokenizer, no_data, train_file=[str(b), str(a)], val_size=2).digest
    assert names(whole) + Counter(e.where.split(":")[0] for e in whole.validation) == {
        "a.JSONL": 4,
        "b.jsonl": 3,
    }


def test_a_folder_without_data_and_a_missing_file_are_refused(
    tokenizer: Any, no_data: Options, tmp_path: Path, train_file: Path
) -> None:
    (tmp_path / "README.md").write_text("none")
    with pytest.raises(ValueError, match=r"train_file: the folder .* has no data file.*\.parquet"):
        load(tokenizer, no_data, train_file=str(tmp_path), val_size=2)
    with pytest.raises(ValueError, match=r"train_file: .*/gone: does not exist"):
        load(tokenizer, no_data, train_file=str(tmp_path / "gone"), val_size=2)
    gone = str(tmp_path / "gone.json")
    with pytest.raises(ValueError, match=r"validation_file: .*gone\.json: does not exist"):
        load(tokenizer, no_data, train_file=str(train_file), validation_file=gone)


def test_a_path_named_twice_is_refused(
    tokenizer: Any, no_data: Options, write_rows: WriteRows, tmp_path: Path
) -> None:
    path = write_rows(*texts("one", 4))
    (tmp_path / "link.jsonl").symlink_to(path)
    for again in (path, tmp_path / "link.jsonl", tmp_path):
        with pytest.raises(ValueError, match=r"names .*rows\.jsonl twice"):
            load(tokenizer, no_data, train_file=[str(path), str(again)], val_size=1)
    entry = {"path": str(path)}
    with pytest.raises(ValueError, match=r"datasets: names .*rows\.jsonl twice"):
        load(tokenizer, no_data, datasets=[entry, entry], val_size=1)


def test_a_dataset_is_loaded_by_name(
    tokenizer: Any, no_data: Options, write_rows: WriteRows, tmp_path: Path
) -> None:
    write_rows(*texts("one", 5), name="train.jsonl")
    write_rows(*texts("two", 3), name="test.jsonl")
    named = {**no_data, "dataset_name": str(tmp_path)}
    dataset = load(tokenizer, named, dataset_eval_split="test")
    assert (len(dataset.train), len(dataset.validation)) == (5, 3)
    assert dataset.where([4]) == [f"{tmp_path}[train], row 5"]
    assert len(load(tokenizer, named, dataset_train_split="train[:3]", val_size=1).train) == 2
    with pytest.raises(ValueError, match=r"dataset_name: the split 'none' of .*Unknown split"):
        load(tokenizer, named, dataset_train_split="none", val_size=1)


def test_a_dataset_saved_to_disk_is_loaded(
    tokenizer: Any, no_data: Options, tmp_path: Path
) -> None:
    import datasets

    rows = datasets.Dataset.from_list(texts("one", 5))
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"a": rows}).save_to_disk(str(tmp_path / "dict"))
    one = [{"path": str(tmp_path / "one")}, {"path": str(tmp_path / "dict"), "split": "a"}]
    assert len(load(tokenizer, no_data, datasets=one, val_size=2).train) == 8
    with pytest.raises(ValueError, match="Unknown split 'train'"):
        load(tokenizer, no_data, datasets=[{"path": str(tmp_path / "dict")}], val_size=2)


def test_a_hub_that_cannot_be_reached_is_said(
    tokenizer: Any, no_data: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unreachable(*_given: object, **_named: object) -> None:
        raise ConnectionError("Couldn't reach 'org/data' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        ValueError, match=r"dataset_name: .*'org/data' \(sub\).*Couldn't reach.*net"
    ):
        load(
            tokenizer,
            no_data,
            dataset_name="org/data",
            dataset_config_name="sub",
            val_size=1,
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one of train_file, dataset_name, datasets, got none"),
        ({"train_file": "a", "dataset_name": "b"}, "got train_file and dataset_name"),
        ({"train_file": "a", "dataset_eval_split": "test"}, "says which part of dataset_name"),
        ({"train_file": []}, "train_file"),
        ({"train_file": "a", "mix_strategy": "interleave_under"}, "needs two 'datasets:' or more"),
        ({"train_file": "a", "interleave_probs": "0.5,0.5"}, "only when they are interleaved"),
        ({"datasets": [{"path": "a", "weight": 2}, {"path": "b"}]}, "only when they are"),
        ({"datasets": [{"path": "a", "wait": 2}]}, "wait"),
        ({"datasets": [{"path": "a", "columns": {"answer": "b"}}]}, "'answer' is no column"),
        ({"train_file": "a", "validation_file": {}}, "names no validation set"),
        ({"train_file": "a", "validation_file": {"a/b": "c"}}, "'a/b' cannot name"),
        ({"train_file": "a", "train_on_prompt": True, "mask_history": True}, "only one of them"),
        ({"train_file": "a", "chat_template": "chatlm"}, "'chatlm' is no template. Known: chatml"),
        (
            {"train_file": "a", "packing": True, "train_sampling_strategy": "group_by_length"},
            "nothing to group",
        ),
        (
            {
                "datasets": [{"path": "a", "weight": 2}, {"path": "b"}],
                "mix_strategy": "interleave_over",
            },
            "1 of 2 datasets have a weight",
        ),
        (
            {
                "datasets": [{"path": "a"}, {"path": "b"}],
                "mix_strategy": "interleave_over",
                "interleave_probs": [1, 2, 3],
            },
            "3 numbers for 2 datasets",
        ),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options: Options, said: str) -> None:
    base = {"model_name_or_path": "org/model"}
    if "validation_file" not in options and "dataset_eval_split" not in options:
        base["val_size"] = "0.1"
    with pytest.raises(ValidationError, match=said):
        LoraOptions.model_validate({**base, **options})


def test_options_of_data_survive_json() -> None:
    options = LoraOptions.model_validate(
        {
            "model_name_or_path": "org/model",
            "datasets": [
                {"path": "a", "weight": 1},
                {"path": "b", "weight": 2, "roles": {"q": "user"}},
            ],
            "mix_strategy": "interleave_over",
            "validation_file": {"one": "a.json", "two": ["b.json", {"path": "c", "split": "d"}]},
        }
    )
    assert LoraOptions.model_validate_json(options.model_dump_json()) == options
    assert LoraOptions.model_validate(options.model_dump(mode="json")) == options


def mixed(
    tokenizer: Any, no_data: Options, paths: list[Path], weights: list[float], **options: object
) -> Dataset:
    entries: list[Options] = [{"path": str(path)} for path in paths]
    for entry, weight in zip(entries, weights, strict=False):
        entry["weight"] = weight
    return load(tokenizer, no_data, datasets=entries, **{"val_size": 2, **options})


def test_datasets_are_mixed_by_weight(
    tokenizer: Any, no_data: Options, write_rows: WriteRows
) -> None:
    paths = [
        write_rows(*texts("one", 200), name="a.jsonl"),
        write_rows(*texts("two", 60), name="b.jsonl"),
    ]
    concat = names(mixed(tokenizer, no_data, paths, []))
    assert concat.total() == 258
    under = mixed(tokenizer, no_data, paths, [3, 1], mix_strategy="interleave_under")
    shares = names(under)
    assert 2 < shares["a.jsonl"] / shares["b.jsonl"] < 4.5
    assert max(Counter(under.where(range(len(under.train)))).values()) == 1
    over = mixed(tokenizer, no_data, paths, [1, 1], mix_strategy="interleave_over")
    assert names(over)["a.jsonl"] >= concat["a.jsonl"]
    assert 0.7 < names(over)["a.jsonl"] / names(over)["b.jsonl"] < 1.4
    once = mixed(tokenizer, no_data, paths, [], mix_strategy="interleave_once")
    assert names(once) == concat
    assert once.where(range(2))[0][0] != once.where(range(2))[1][0]


@pytest.mark.parametrize("strategy", ["interleave_under", "interleave_over"])
def test_a_mix_depends_on_the_data_seed_only_and_leaks_nothing(
    tokenizer: Any, no_data: Options, write_rows: WriteRows, strategy: str
) -> None:
    paths = [
        write_rows(*texts("one", 30), name="a.jsonl"),
        write_rows(*texts("two", 6), name="b.jsonl"),
    ]

    def mix(**options: object) -> Dataset:
        return mixed(tokenizer, no_data, paths, [1, 2], **{"mix_strategy": strategy, **options})

    one = mix(val_size=9)
    assert one.digest == mix(val_size=9, seed=9).digest
    assert one.digest != mix(val_size=9, data_seed=9).digest
    trained = set(one.where(range(len(one.train))))
    assert trained
    assert not trained & {example.where for example in one.validation}
    assert len(mix(max_train_samples=5).train) == 5


def test_a_dataset_is_limited_or_repeated_to_its_number(
    tokenizer: Any, no_data: Options, write_rows: WriteRows
) -> None:
    path = str(write_rows(*texts("one", 10)))
    more = load(tokenizer, no_data, datasets=[{"path": path, "num_samples": 25}], val_size=3)
    rows = Counter(more.where(range(len(more.train))))
    assert (rows.total(), len(rows)) == (22, 7)
    fewer = load(tokenizer, no_data, datasets=[{"path": path, "num_samples": 4}], val_size=1)
    assert (len(fewer.train), len(fewer.validation)) == (3, 1)
    most = load(tokenizer, no_data, datasets=[{"path": path, "max_samples": 25}], val_size=3)
    assert len(most.train) == 7


def test_columns_and_roles_may_have_other_names(
    tokenizer: Any, no_data: Options, write_rows: WriteRows
) -> None:
    alpaca = [{"q": "say one", "a": "one"}, {"q": "say two", "a": "two"}]
    chat = [{"chat": [{"who": "me", "what": "say one"}, {"who": "bot", "what": "one"}]}] * 2
    entries = [
        {
            "path": str(write_rows(*alpaca, name="alpaca.jsonl")),
            "columns": {"instruction": "q", "output": "a"},
        },
        {
            "path": str(write_rows(*chat, name="chat.jsonl")),
            "columns": {"messages": "chat", "role": "who", "content": "what"},
            "roles": {"me": "user", "bot": "assistant"},
        },
    ]
    dataset = load(tokenizer, no_data, datasets=entries, val_size=1)
    assert "say one<|im_end|>\n<|im_start|>assistant\none" in {
        tokenizer.decode(e.input_ids)
        .removeprefix("<|im_start|>user\n")
        .removesuffix("<|im_end|>\n")
        for e in (*dataset.train, *dataset.validation)
    }
    bad = str(write_rows({"q": "say", "a": 3}, name="bad.jsonl"))
    with pytest.raises(ValueError, match=r"bad\.jsonl:1: expected a text.* in 'a', found 3"):
        load(tokenizer, no_data, datasets=[{**entries[0], "path": bad}], val_size=1)


def test_one_file_may_be_read_in_two_ways(
    tokenizer: Any, no_data: Options, write_rows: WriteRows
) -> None:
    path = str(write_rows(*[{"text": f"one {n}", "other": f"two {n}"} for n in range(3)]))
    entries = [{"path": path, "data_format": "text"}]
    entries.append({"path": path, "data_format": "text", "columns": {"text": "other"}})
    dataset = load(tokenizer, no_data, datasets=entries, val_size=1)
    found = {tokenizer.decode(e.input_ids) for e in (*dataset.train, *dataset.validation)}
    assert found == {f"{word} {n}<|im_end|>" for word in ("one", "two") for n in range(3)}


def test_several_validation_sets_are_told_apart(
    tokenizer: Any, no_data: Options, write_rows: WriteRows, train_file: Path
) -> None:
    a = str(write_rows(*texts("one", 4), name="a.jsonl"))
    b = str(write_rows(*texts("two", 3), name="b.jsonl"))
    given: Options = {**no_data, "train_file": str(train_file)}
    several = load(tokenizer, given, validation_file={"easy": a, "hard": [b]})
    assert several.validation_sets == {"easy": (0, 1, 2, 3), "hard": (4, 5, 6)}
    assert several.validation[4].where.endswith("b.jsonl:1")
    one = load(tokenizer, given, validation_file=[a, b])
    assert one.validation_sets == {"validation": tuple(range(7))}
    assert one.digest != several.digest  # other metrics come of it
    few = load(tokenizer, given, validation_file={"easy": a, "hard": b}, eval_max_samples=2)
    assert few.validation_sets == {"easy": (0, 1), "hard": (2, 3)}


def test_no_validation_data_is_an_empty_set(
    tokenizer: Any, no_data: Options, train_file: Path
) -> None:
    from trainers.lora.data.dataset import load_dataset
    from trainers.lora.data.encoding import Encoder

    given = {**no_data, "train_file": str(train_file), "val_size": 0.1}
    options = LoraOptions.model_validate(given).model_copy(update={"val_size": None})
    dataset = load_dataset(options, Encoder.of(options, tokenizer), 0)
    assert (len(dataset.train), dataset.validation, dataset.validation_sets) == (24, (), {})


def test_data_that_is_both_trained_and_validated_on_is_said(
    tokenizer: Any, no_data: Options, train_file: Path
) -> None:
    given = {"train_file": str(train_file), "validation_file": str(train_file)}
    assert load(tokenizer, no_data, **given).notes[-1] == (
        f"{train_file} is trained on and validated on"
    )


GOOD = '{"instruction": "say one", "output": "one"}'

BAD_LINES = [
    '{"instruction": "sa',
    "[]",
    '"text"',
    '{"instruction": null, "output": "x"}',
    '{"instruction": "x", "output": ""}',
    '{"instruction": "x", "output": "\\ud83d"}',
    '{"instruction": "x", "output": "y", "history": "z"}',
    '{"n": ' + "9" * 5000 + "}",
    '{"n": ' + "[" * 100000,
]


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_rows_are_left_out_and_counted(
    tokenizer: Any, no_data: Options, tmp_path: Path, line: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    given = {**no_data, "train_file": str(path), "val_size": 1}
    with pytest.raises(ValueError, match=r"rows\.jsonl:2\b"):
        load(tokenizer, given)
    dataset = load(tokenizer, given, on_bad_rows="skip")
    assert (len(dataset.train), len(dataset.validation), dataset.num_skipped_rows) == (1, 1, 1)
    assert dataset.notes[0].startswith(f"1 bad row is left out: {path}:2")


def test_only_the_first_bad_rows_are_shown(
    tokenizer: Any, no_data: Options, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*BAD_LINES, GOOD, GOOD]))
    given = {**no_data, "train_file": str(path), "val_size": 1, "on_bad_rows": "skip"}
    note = load(tokenizer, given).notes[0]
    assert note.startswith(f"{len(BAD_LINES)} bad rows are left out (the first 3): ")
    assert all(f"rows.jsonl:{number}" in note for number in (1, 2, 3))
    assert "rows.jsonl:4" not in note
    path.write_text("\n".join(BAD_LINES))
    with pytest.raises(ValueError, match=r"none of the training rows can be used \(9 bad rows\)"):
        load(tokenizer, given)


def test_rows_that_the_template_refuses_are_bad_rows(
    tokenizer: Any, no_data: Options, tmp_path: Path, write_rows: WriteRows
) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('never') }}{% endif %}"
        "{{ m.role }}:{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    rows = [{"instruction": word, "output": "x"} for word in ("a", "no", "b", "c")]
    given = {**no_data, "train_file": str(write_rows(*rows)), "chat_template": str(template)}
    with pytest.raises(
        ValueError, match=r"rows\.jsonl:2: the .*strict\.jinja chat template refuses"
    ):
        load(tokenizer, given, val_size=1)
    dataset = load(tokenizer, given, val_size=2, on_bad_rows="skip")
    assert dataset.num_skipped_rows == 1
    assert len(dataset.train) + len(dataset.validation) == 3


def test_bytes_that_editors_leave_behind_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\n"}\r\n\r\n  \r\n{"text": "\xf0\x9f\x99\x82"}')
    assert [r.fields["text"] for r in read_records(path)] == ["a\r\n", "\U0001f642"]
    assert [r.where.rpartition(":")[2] for r in read_records(path)] == ["1", "4"]
    (path := tmp_path / "rows.csv").write_bytes(
        b'\xef\xbb\xbfprompt,completion\r\n"say ""one"", please","a\r\nb"\r\n\r\n,\r\nc,d\r\n'
    )
    records = read_records(path)
    assert records[0].fields == {"prompt": 'say "one", please', "completion": "a\r\nb"}
    assert [record.where.rpartition(":")[2] for record in records] == ["3", "5", "6"]
    with pytest.raises(ValueError, match=r"rows\.csv:5: expected a text that is not empty"):
        read_samples(records)
    (path := tmp_path / "rows.txt").write_bytes(b"one\r\n\r\ntwo")
    assert [r.fields["text"] for r in read_records(path)] == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('a,b\n1,2\n"open,1\n2,3\n', r"rows\.csv:3: not CSV.*in the row of lines 3 to 4"),
        ('a,b\n"x"y,1\n', r"rows\.csv:2: not CSV"),
        ("a,a\n1,2\n", r"rows\.csv:1: the column 'a' is there twice"),
        ("a,b\n1\n", r"rows\.csv:2: expected 2 columns.*fewer"),
        ("a,b\n", "no rows"),
        ("", "no rows"),
    ],
)
def test_csv_that_is_broken_names_the_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_records(tmp_path / "rows.csv")


def test_rows_of_a_csv_after_a_broken_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('a,b\n1,2\n"x"y,1\n3,4\n5\n6,7\n"open,1\n2,3\n')
    bad_rows = BadRows("skip")
    records = read_records(tmp_path / "rows.csv", bad_rows)
    assert [record.fields["a"] for record in records] == ["1", "3", "6"]
    assert [m.split(":")[1] for m in bad_rows.messages] == ["3", "5", "7"]


def test_a_long_text_in_a_csv_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"text\n{'x' * 200_000}\n")
    (sample,) = read_samples(read_records(tmp_path / "rows.csv"))
    assert isinstance(sample, Completion)
    assert len(sample.completion) == 200_000


def test_parquet_without_a_column_names_the_row(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "text=7"  # a partition's name to pyarrow, a folder to us
    folder.mkdir()
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet, row 2: .* in 'output', found nothing"):
        read_samples(read_records(folder / "rows.parquet"))
    pyarrow.parquet.write_table(pyarrow.table({"instruction": ["a"]}), folder / "rows.parquet")
    with pytest.raises(ValueError, match=r"row 1: .*not recognised from the columns instruction\."):
        read_samples(read_records(folder / "rows.parquet"))


def test_json_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for text, said in (
        ("3", "expected a list of rows, found int 3"),
        ("[]", "no rows"),
        ("[" * 100000, "not JSON"),
        ("", "not JSON"),
        (json.dumps([[1]]), r"row 1: expected an object"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_records(path)
