"""Reading rows, finding answers, splitting: what a trial learns from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainers.lora.data.dataset import TOKEN_MULTIPLE, Dataset, load_dataset
from trainers.lora.data.encoding import IGNORE_INDEX, Encoder, Example
from trainers.lora.data.records import read_records
from trainers.lora.data.samples import Completion, Conversation, Message, read_samples
from trainers.lora.options import LoraOptions

WriteRows = Callable[..., Path]

GOOD = {"instruction": "say one", "output": "one"}


def learned(tokenizer: Any, example: Example) -> str:
    ids = [i for i, label in zip(example.input_ids, example.labels, strict=True) if label >= 0]
    return str(tokenizer.decode(ids))


def load(tokenizer: Any, fixed: dict[str, object], **options: object) -> Dataset:
    checked = LoraOptions.model_validate({**fixed, **options})
    return load_dataset(checked, Encoder.of(checked, tokenizer), pad_token_id=0)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"instruction": "say", "output": ""}', r"expected a text that is not empty in 'output'"),
        ('{"instruction": "say"}', r"found nothing"),
        ('{"instruction": "say", "output": 3}', r"found 3"),
        ('["a"]', r"expected an object with named columns"),
        ('{"instruction": "sa', r"Is the line cut off"),
    ],
)
def test_a_bad_row_names_file_and_line(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{row}\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl:3\b.*{said}"):
        read_samples(read_records(path), "auto")


def test_a_bad_row_of_a_json_list_has_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([GOOD, {"instruction": "say"}]))
    with pytest.raises(ValueError, match=r"rows\.json, row 2: expected"):
        read_samples(read_records(path), "auto")


def test_a_torn_json_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([GOOD, GOOD], indent=1)[:-20])
    with pytest.raises(ValueError, match=r"rows\.json:\d+:\d+: not JSON"):
        read_records(path)


def test_missing_empty_and_unknown_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_records(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no rows"):
        read_records(tmp_path / "empty.jsonl")
    (tmp_path / "data.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"\.jsonl"):
        read_records(tmp_path / "data.xlsx")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="Parquet"):
        read_records(tmp_path / "torn.parquet")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(ValueError, match="UTF-8"):
        read_records(tmp_path / "latin.jsonl")


def test_all_kinds_of_files_hold_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"instruction": "say, one", "output": "a\nb"}, {"instruction": "x", "output": '"'}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "rows.csv").write_text('instruction,output\n"say, one","a\nb"\nx,""""\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.json", "rows.jsonl", "lines.json", "rows.csv", "rows.parquet"):
        assert [record.fields for record in read_records(tmp_path / name)] == rows, name


def test_a_csv_row_with_a_column_too_many_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\na,b\nc,d,e\n")
    with pytest.raises(ValueError, match=r"rows\.csv:3: expected 2 columns.*more"):
        read_records(path)


CHAT = (Message("user", "say one"), Message("assistant", "one"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (GOOD, Conversation("", CHAT)),
        (
            {"instruction": "say", "input": "one", "output": "one", "system": "be brief"},
            Conversation(
                "",
                (
                    Message("system", "be brief"),
                    Message("user", "say\none"),
                    Message("assistant", "one"),
                ),
            ),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "say one"},
                    {"role": "assistant", "content": "one"},
                ]
            },
            Conversation("", CHAT),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "say one"},
                    {"from": "gpt", "value": "one"},
                ]
            },
            Conversation("", CHAT),
        ),
        (
            {
                "prompt": [{"role": "user", "content": "say one"}],
                "completion": [{"role": "assistant", "content": "one"}],
            },
            Conversation("", CHAT),
        ),
        ({"prompt": "say one", "completion": " one"}, Completion("", "say one", " one")),
        ({"text": "one two"}, Completion("", "", "one two")),
    ],
)
def test_layouts_are_recognised(write_rows: WriteRows, row: object, expected: object) -> None:
    (sample,) = read_samples(read_records(write_rows(row)), "auto")
    assert sample == type(expected)(sample.where, *list(vars(expected).values())[1:])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "a"}, "not recognised from the columns question"),
        ({"messages": []}, "a list of messages"),
        ({"messages": [{"role": "user", "content": "a"}]}, "at least one answer"),
        ({"messages": [{"role": "robot", "content": "a"}]}, r"messages\[1\].role.*'robot'"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "a message that the answer"),
    ],
)
def test_rows_that_fit_no_layout_are_refused(write_rows: WriteRows, row: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_samples(read_records(write_rows(row)), "auto")


def test_only_answers_are_learned(tokenizer: Any) -> None:
    turns = [("system", "be brief"), ("user", "say one"), ("assistant", "one")]
    turns += [("user", "say two"), ("assistant", "    two")]
    sample = Conversation("here", tuple(Message(*turn) for turn in turns))
    example = Encoder(tokenizer, 64, None).encode(sample)
    assert learned(tokenizer, example) == "one<|im_end|>\n    two<|im_end|>\n"
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns], tokenize=False
    )
    assert tokenizer.decode(example.input_ids) == text


def test_blanks_that_a_tokenizer_reports_without_width_are_learned() -> None:
    import torch

    from trainers.lora.data.encoding import _label

    # "Q:" then an answer "   x", whose token of three blanks is reported as (5, 5).
    labels = _label(torch.tensor([7, 8, 9]), [(0, 2), (5, 5), (5, 6)], [(2, 6)])
    assert labels.tolist() == [IGNORE_INDEX, 8, 9]


def test_a_completion_is_learned_with_its_end(tokenizer: Any) -> None:
    example = Encoder(tokenizer, 64, None).encode(Completion("here", "say one:", " one"))
    assert learned(tokenizer, example) == " one<|im_end|>"


def test_a_model_without_chat_template_gets_a_plain_one(plain_tokenizer: Any) -> None:
    encoder = Encoder(plain_tokenizer, 64, "be brief")
    example = encoder.encode(Conversation("here", CHAT))
    assert plain_tokenizer.decode(example.input_ids) == (
        "be brief\n\n### Instruction:\nsay one\n\n### Response:\none<|im_end|>\n\n"
    )
    assert learned(plain_tokenizer, example) == "one<|im_end|>\n\n"


def test_answers_that_the_template_rewrites_are_counted(tokenizer: Any) -> None:
    # As templates of reasoning models do: only the last answer is led by its reasoning.
    thinking = "{% if loop.last and message.role == 'assistant' %}<think></think>{% endif %}"
    before = tokenizer.chat_template
    tokenizer.chat_template = before.replace(
        "{{ message.content }}", thinking + "{{ message.content }}"
    )
    turns = (*CHAT, Message("user", "say two"), Message("assistant", "two"))
    try:
        example = Encoder(tokenizer, 64, None).encode(Conversation("here", turns))
    finally:
        tokenizer.chat_template = before
    assert example.num_skipped_answers == 1
    assert learned(tokenizer, example) == "<think></think>two<|im_end|>\n"


def test_a_refusal_of_the_template_names_the_row(tokenizer: Any) -> None:
    tokenizer.chat_template, before = "{{ raise_exception('no') }}", tokenizer.chat_template
    try:
        with pytest.raises(ValueError, match="here: the model's chat template refuses"):
            Encoder(tokenizer, 64, None).encode(Conversation("here", CHAT))
    finally:
        tokenizer.chat_template = before


def test_cut_examples_are_counted_and_those_without_answer_left_out(
    tokenizer: Any, fixed: dict[str, object], write_rows: WriteRows
) -> None:
    rows = [GOOD, {"instruction": "say one", "output": "one " * 100}]
    rows.append({"instruction": "say one " * 100, "output": "one"})
    path = write_rows(*rows)
    dataset = load(tokenizer, fixed, train_file=str(path), val_size=None, validation_file=str(path))
    assert len(dataset.train) == 2
    assert dataset.notes[:2] == (
        "1 of 3 training examples are cut to max_length 64",
        "1 of 3 training examples are left out: no token of their answer is within max_length 64",
    )


def test_data_without_anything_to_learn_is_refused(
    tokenizer: Any, fixed: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="Give a larger max_length"):
        load(tokenizer, fixed, max_length=2)


def test_the_split_depends_on_the_data_seed_only(tokenizer: Any, fixed: dict[str, object]) -> None:
    def validation(**options: object) -> set[tuple[int, ...]]:
        dataset = load(tokenizer, fixed, **options)
        return {tuple(example.input_ids.tolist()) for example in dataset.validation}

    assert validation() == validation(seed=1) == validation(max_train_samples=5)
    assert validation() != validation(data_seed=1)
    assert validation(eval_max_samples=2) < validation()
    assert len(validation(val_size=0.25)) == 6


def test_training_and_validation_share_no_row(tokenizer: Any, fixed: dict[str, object]) -> None:
    dataset = load(tokenizer, fixed)
    train = {tuple(example.input_ids.tolist()) for example in dataset.train}
    assert not train & {tuple(example.input_ids.tolist()) for example in dataset.validation}
    assert (len(dataset.train), len(dataset.validation)) == (20, 4)


def test_a_split_that_leaves_nothing_is_refused(tokenizer: Any, fixed: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="leaves none to train on"):
        load(tokenizer, fixed, val_size=24)


def test_rows_are_padded_to_a_fixed_multiple(tokenizer: Any, fixed: dict[str, object]) -> None:
    dataset = load(tokenizer, fixed)
    batch = dataset.train_batch([0, 1, 2])
    assert batch.input_ids.shape[1] % TOKEN_MULTIPLE == 0
    assert batch.num_targets == sum(example.num_targets for example in dataset.train[:3])
    row = dataset.train[0]
    assert batch.targets[0, : len(row.labels) - 1].tolist() == row.labels[1:].tolist()
    assert batch.targets[0, len(row.labels) - 1 :].unique().tolist() == [IGNORE_INDEX]
