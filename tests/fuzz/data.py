"""Data files: rows in JSON, JSONL, CSV, Parquet and text, chat templates, and what is made of them."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import random
from pathlib import Path

from tests.fuzz.mutation import CHUNKS, Mutator
from tests.fuzz.surface import Attempt, Seeds
from tests.tiny_model import CHAT_TEMPLATE, save_tokenizer
from trainers.lora.data.encoding import Encoder
from trainers.lora.data.example_sets import make_example_sets, sources_of
from trainers.lora.options import LoraOptions

ROWS: dict[str, list[object]] = {
    "alpaca": [
        {"instruction": f"say {i}", "input": "", "output": f"{i} é 🙂", "system": "be brief"}
        for i in range(3)
    ],
    "history": [{"instruction": "a", "output": "b", "history": [["c", "d"], ["e", "f"]]}],
    "messages": [
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "u"},
                {"role": "assistant", "content": "a"},
            ]
        }
    ]
    * 3,
    "sharegpt": [
        {
            "conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}],
            "system": "s",
        }
    ]
    * 3,
    "prompt_completion": [{"prompt": "p", "completion": "c"}] * 3,
    "chat_prompt": [
        {
            "prompt": [{"role": "user", "content": "u"}],
            "completion": [{"role": "assistant", "content": "a"}],
        }
    ],
    "text": [{"text": f"line {i}"} for i in range(3)],
}
KEYS = ("instruction", "input", "output", "system", "history", "messages", "role", "content")
KEYS += ("conversations", "from", "value", "prompt", "completion", "text")

TEMPLATES = {
    "chatml": CHAT_TEMPLATE.encode(),
    "loops": b"{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "macro": b"{% macro one(m) %}{{ m['content'] | trim }}{% endmacro %}"
    b"{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ one(m) }}"
    b"{% endgeneration %}{% else %}{{ one(m) }}{% endif %}{% endfor %}"
    b"{{ strftime_now('%d') }}{{ raise_exception('no') if not messages }}",
}
TEMPLATE_PAYLOADS = (
    b"{{ ''.__class__.__mro__ }}",
    b"{{ ''.__class__.__mro__[1].__subclasses__() }}",
    b"{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    b"{{ messages.__init__.__globals__ }}",
    b"{{ self.__init__ }}",
    b"{{ raise_exception.__globals__['os'] }}",
    b"{{ strftime_now.__globals__ }}",
    b"{{ tojson.__closure__ }}",
    b"{{ ('{0.__class__.__init__.__globals__}').format(messages) }}",
    b"{{ messages.append(1) }}",
    b"{% for i in range(99999999) %}{% endfor %}",
    b"{% for i in range(999999) %}{% for j in range(999999) %}{% endfor %}{% endfor %}",
    b"{{ 'a' * 9999999999 }}",
    b"{{ [0] * 99999999999 }}",
    b"{{ 9 ** 9 ** 9 }}",
    b"{{ range(9**9) | list }}",
    b"{{ '%999999999999d' % 1 }}",
    b"{{ '{:>9999999999}'.format(1) }}",
    b"{{ 'a'.ljust(9999999999) }}",
    b"{{ 'x' | center(9999999999) }}",
    b"{{ lipsum(n=99999999) }}",
    b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    b"{% include '/etc/passwd' %}",
    b"{% import 'os' as os %}",
    b"{% extends 'x' %}",
    b"{% set x = namespace() %}{% set x.y = x %}{{ x }}",
    b"{{ none.x.y }}",
    b"{{ 1 / 0 }}",
    b"{{ messages[9**9] }}",
    b"{{ undefined_name() }}",
    b"{{ 'a' | nothing }}",
    b"{{ messages | map('foo') | list }}",
    b"{{ 'x' | int(base=99) }}",
    b"{{ messages | sort(attribute='nothing') }}",
    b"{{ '\\ud800' }}",
)


def _jsonl(rows: object) -> bytes:
    listed = rows if isinstance(rows, list) else [rows]
    return b"".join(json.dumps(r).encode("utf-8", "surrogatepass") + b"\n" for r in listed)


def _csv(rows: list[object]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))  # type: ignore[call-overload]
    writer.writeheader()
    writer.writerows(rows)  # type: ignore[arg-type]
    return out.getvalue().encode()


def _parquet(rows: list[object]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


class DataFiles:
    """Rows from their file to tokens."""

    name = "data"
    weight = 80

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        save_tokenizer(folder / "tokenizer", CHAT_TEMPLATE)
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        trees: list[object] = list(ROWS.values())
        flat = ROWS["alpaca"]
        kinds: dict[str, dict[str, bytes]] = {
            ".jsonl": {name: _jsonl(rows) for name, rows in ROWS.items()},
            ".json": {name: json.dumps(rows).encode() for name, rows in ROWS.items()},
            ".csv": {"alpaca": _csv(flat), "text": _csv(ROWS["text"])},
            ".parquet": {name: _parquet(rows) for name, rows in ROWS.items() if rows},
            ".txt": {"text": b"one\ntwo\n\nthree\n"},
        }
        self.seeds = {
            kind: Seeds(texts, trees if kind in (".jsonl", ".json") else [], KEYS)
            for kind, texts in kinds.items()
        }

    def attempt(self, folder: Path, rng: random.Random) -> Attempt:
        kind = rng.choice([".jsonl", ".jsonl", ".json", ".json", ".csv", ".parquet", ".txt"])
        if rng.random() < 0.02:
            name, content = "giant", _giant(rng, kind)
        elif kind == ".parquet" and rng.random() < 0.5:
            name, content = "grown", _strange_parquet(rng)
        else:
            dump = _jsonl if kind == ".jsonl" else _json
            name, content = self.seeds[kind].draw(rng, dump)
        return self.of(folder, f"{name}{kind}", content, rng)

    def of(
        self, folder: Path, name: str, content: bytes, rng: random.Random | None = None
    ) -> Attempt:
        rng = rng or random.Random(0)
        path = folder / f"rows{Path(name).suffix}"
        path.write_bytes(content)
        options = LoraOptions(
            model_name_or_path="x",
            train_file=str(path),
            val_size=rng.choice([1, 0.2, None]),
            data_format=rng.choice(["auto", "auto", "auto", "alpaca", "sharegpt", "text"]),
            on_bad_rows=rng.choice(["error", "skip"]),
            max_length=64,
        )

        def read() -> None:
            encoder = Encoder.of(options, self.tokenizer)
            sets = make_example_sets(options, encoder, *sources_of(options))
            assert sets.train, "an accepted file gives examples"

        return Attempt(read, content, name, (ValueError,))


class ChatTemplates:
    """A .jinja file of the user's: compiled and rendered in transformers' sandbox."""

    name = "template"
    weight = 7

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        save_tokenizer(folder / "template", None)
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "template")
        self.seeds = Seeds(TEMPLATES)

    def attempt(self, folder: Path, rng: random.Random) -> Attempt:
        name, content = self.seeds.draw(rng, _json)
        if rng.random() < 0.6:
            at = rng.randrange(len(content) + 1)
            if rng.random() < 0.5:
                at = rng.choice((0, len(content)))
                content = rng.choice(list(TEMPLATES.values()))
            content = content[:at] + rng.choice(TEMPLATE_PAYLOADS) + content[at:]
        return self.of(folder, name, content)

    def of(self, folder: Path, name: str, content: bytes) -> Attempt:
        (folder / "own.jinja").write_bytes(content)
        (folder / "rows.jsonl").write_bytes(_jsonl(ROWS["messages"]))
        options = LoraOptions(
            model_name_or_path="x",
            train_file=str(folder / "rows.jsonl"),
            chat_template=str(folder / "own.jinja"),
            eval_strategy="no",
            max_length=64,
        )

        def read() -> None:
            encoder = Encoder.of(options, self.tokenizer)
            make_example_sets(options, encoder, *sources_of(options))

        return Attempt(read, content, name, (ValueError,))


def _json(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _giant(rng: random.Random, kind: str) -> bytes:
    """Return a file that is much larger than it looks, or deeper, or one line of it is."""
    text = b"a" * rng.choice((10**5, 10**6))
    if rng.random() < 0.1:
        return _bomb()
    return rng.choice(
        (
            b'{"text": "' + text + b'"}\n',
            b'{"text": ' + b"[" * 10**5 + b"]" * 10**5 + b"}\n",
            b'{"text": ' + b"9" * 10**5 + b"}\n",
            b"text\n" + b'"' + text,
            b"text," * 10**5 + b"\n1\n",
            b"\n" * 10**6,
            b'{"text": "a"}\n' * 2000 + b'{"text": "a"',
            b'{"text": "a", ' + b", ".join(b'"k%d": 1' % i for i in range(10**4)) + b"}",
            b'[{"text": "\\ud83d"}]',
            text,
        )
    )


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(b"\x00" * 10**8, compresslevel=1)


def _strange_parquet(rng: random.Random) -> bytes:
    """Return a whole Parquet file with columns of any type."""
    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        "text": pa.array(["a", "b"]),
        "bytes": pa.array([b"\xff\x00", b""]),
        "large": pa.array(["a", None], pa.large_string()),
        "number": pa.array([2**63 - 1, None]),
        "nan": pa.array([float("nan"), float("inf")]),
        "when": pa.array([-(10**18), 10**18], pa.timestamp("us")),
        "nanos": pa.array([1, 2**62], pa.timestamp("ns", "Nowhere/City")),
        "day": pa.array([2**31 - 1, -(2**31)], pa.date32()),
        "time": pa.array([0, 10**15], pa.time64("us")),
        "duration": pa.array([2**62, -1], pa.duration("s")),
        "decimal": pa.array([None, None], pa.decimal128(38, 2)),
        "nested": pa.array([[{"role": "user", "content": None}], None]),
        "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
        "words": pa.array(["x", "x"]).dictionary_encode(),
        "null": pa.array([None, None]),
        "ints": pa.array([[1, 2], []]),
    }
    names = rng.sample(sorted(columns), rng.randrange(1, 4))
    table = pa.table({rng.choice((*KEYS, name)): columns[name] for name in names})
    if rng.random() < 0.2:
        table = table.slice(0, 0)
    sink = io.BytesIO()
    pyarrow.parquet.write_table(
        table, sink, compression=rng.choice(["none", "gzip", "snappy", "zstd"])
    )
    content = sink.getvalue()
    return Mutator(rng).bytes(content, CHUNKS) if rng.random() < 0.3 else content
