"""Makes bad inputs of good ones: of bytes, and of values. Seeded; reads no file."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Mapping, Sequence

NESTED = 60
"""Levels; deeper ones come as bytes, since Python itself cannot copy or write them."""

PAYLOADS = (
    "__import__('os').system('touch CANARY')",
    "(lambda: 0)()",
    "().__class__.__bases__[0].__subclasses__()",
    "open('CANARY', 'w')",
    "x.__class__",
    "9**9**9",
    "2**(2**2000)",
    "'a'*10**9",
    "[0]*10**9",
    "[i for i in (1,)]",
    "f'{x.__class__}'",
    "'{0.__class__}'.format(x)",
    "1 if 1 else (yield)",
    "x := 3",
    "(" * 80 + "1" + ")" * 80,
    "-" * 90 + "1",
    "not " * 90 + "x",
    "1" * 5000,
    "min(" * 70 + "1" + ")" * 70,
    "x in x in x",
    "'%s' % x",
    "round(x, 10**9)",
    "1e400",
    "0x" + "f" * 800,
    "x if y else",
    "max()",
    "int('9' * 9)",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{% for i in range(999999999) %}x{% endfor %}",
    "{{ 'a' * 999999999999 }}",
    "{{ lipsum.__globals__ }}",
    "=cmd|'/C touch CANARY'!A0",
    "$(touch CANARY)",
    "`touch CANARY`",
    "${HOME}",
    "%(study)s",
    "{study.__class__.__init__.__globals__}",
    "{number:>99999999999}",
    "{0}{}",
    "tests.fuzz.mutation:Mutator",
    "os:system",
    "posix:system",
    "subprocess:Popen",
    "builtins:exec",
    "builtins.eval",
    "no.such.module:Thing",
    ":x",
    "..x",
    ".:x",
    "a:",
    "json:",
    "json:tool.nothing",
    "(a+)+$",
    "re:(",
    "../../../../etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "/",
    ".",
    "~",
    "~nobody/x",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x",
    "s3://bucket/x",
    "sqlite:///:memory:",
    "postgresql://a:b@127.0.0.1:9/x",
    "mysql://x/y",
)

SCALARS: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    7,
    0.5,
    -0.0,
    2**31,
    2**53 + 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**400,
    1e-320,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    " ",
    "\n",
    "\x00",
    "\ud800",
    "a\udfffb",
    "\u202e\u200b",
    "é" * 300,
    "a" * 100_000,
    "nan",
    "inf",
    "1e5",
    "1_000",
    "0o17",
    "yes",
    "null",
    "~",
    "auto",
    "none",
    "all",
    "2026-01-01",
    "x",
    "learning_rate",
)

CHUNKS: tuple[bytes, ...] = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\t",
    b'"',
    b"'",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b",",
    b":",
    b": ",
    b"- ",
    b"{",
    b"}",
    b"[",
    b"]",
    b"#",
    b"|\n",
    b">\n",
    b"&a ",
    b"*a ",
    b"&a [*a]",
    b"<<: *a",
    b"<<: {x: 1}",
    b"? ",
    b"!!",
    b"!!python/object/apply:os.system ['touch CANARY']",
    b"!!python/name:os.system",
    b"!!python/module:os",
    b"!!binary aGk=",
    b"!!timestamp 2026-01-01",
    b"!!set {a, b}",
    b"!!omap [a: 1]",
    b"!!pairs [a: 1]",
    b"!!float x",
    b"!!int x",
    b"!!bool 3",
    b"!!null x",
    b"!!seq {}",
    b"!!map []",
    b"!local x",
    b"%YAML 9.9\n---\n",
    b"%TAG ! tag:x,2002:\n---\n",
    b"---\n",
    b"...\n",
    b"= ",
    b".nan",
    b"-.inf",
    b"1e999",
    b"0x_",
    b"0b",
    b"1:30:00",
    b"9" * 5000,
    b"[" * 2000,
    b"{a: " * 400,
    b"- " * 400,
    b"NaN",
    b"Infinity",
    b"1E400",
    b"@",
    b"`",
    b"%",
)


class Mutator:
    """Draws mutations; the same seed draws the same."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    # Bytes

    def bytes(self, data: bytes, others: Sequence[bytes] = ()) -> bytes:
        """Return bytes with one to four things done to them."""
        for _ in range(self.rng.choice((1, 1, 1, 2, 2, 4))):
            data = self._one(data, others)
        return data

    def _one(self, data: bytes, others: Sequence[bytes]) -> bytes:
        rng = self.rng
        kind = rng.randrange(11)
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.choice((1, 1, 2, 5, 20, 100)))
        if kind == 0 and data:  # a flipped bit
            place = min(at, len(data) - 1)
            return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
        if kind == 1:  # torn
            return data[:at]
        if kind == 2:
            return data[:at] + data[to:]
        if kind == 3:
            return data[:to] + data[at:]
        if kind in (4, 5):
            return data[:at] + rng.choice(CHUNKS) + data[at:]
        if kind == 6:
            return data[:at] + rng.choice(CHUNKS) + data[to:]
        if kind == 7:
            text = json.dumps(rng.choice(PAYLOADS)).encode()
            return data[:at] + (text if rng.random() < 0.5 else text[1:-1]) + data[to:]
        if kind == 8 and others:  # spliced with another good one
            other = rng.choice(others)
            return data[:at] + other[rng.randrange(len(other) + 1) :]
        if kind == 9:
            return rng.choice((b"\xef\xbb\xbf", b"\x00", b"\xff\xfe", b"\x1f\x8b\x08")) + data
        if kind == 10 and rng.random() < 0.3:
            codec = rng.choice(("utf-16", "utf-32", "utf-7", "cp037"))
            return data.decode("latin-1").encode(codec, "replace")
        lines = data.split(b"\n")  # lines changed in order
        one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[one], lines[other] = lines[other], lines[one]
        return b"\n".join(lines)

    # Values

    def value(self) -> object:
        """Return a value that somebody may have forgotten to think of."""
        rng = self.rng
        kind = rng.randrange(12)
        if kind < 5:
            return rng.choice(SCALARS)
        if kind < 8:
            return rng.choice(PAYLOADS)
        if kind == 8:
            return [self.value() for _ in range(rng.randrange(4))] if rng.random() < 0.7 else []
        if kind == 9:
            keys = (*(str(s) for s in SCALARS[:12]), "type", "value", "path", "low", "choices")
            return {rng.choice(keys): rng.choice(SCALARS) for _ in range(rng.randrange(4))}
        if kind == 10:
            return rng.uniform(-10, 10) if rng.random() < 0.5 else rng.randrange(-5, 100)
        nested: object = 1
        wrapped = rng.random() < 0.5
        for _ in range(rng.choice((3, 25, NESTED))):
            nested = [nested] if wrapped else {"a": nested}
        return nested

    def tree(self, value: object, names: Sequence[str] = ()) -> object:
        """Return a copy of plain values with one to four things done to them.

        Args:
            value: Dicts, lists and scalars.
            names: Keys that mean something somewhere.
        """
        value = copy.deepcopy(value)
        for _ in range(self.rng.choice((1, 1, 1, 2, 2, 4))):
            value = self._change(value, names)
        return value

    def _change(self, value: object, names: Sequence[str]) -> object:
        rng = self.rng
        holders: list[dict[str, object] | list[object]] = []
        _collect(value, holders)
        if not holders:
            return self.value()
        holder = rng.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys or rng.random() < 0.15:
            if isinstance(holder, dict):
                holder[rng.choice(names) if names else "x"] = self.value()
            else:
                holder.append(self.value())
            return value
        key = rng.choice(keys)
        kind = rng.randrange(7)
        if kind <= 2:
            holder[key] = self.value()  # type: ignore[index]
        elif kind == 3:
            del holder[key]  # type: ignore[arg-type]
        elif kind == 4 and isinstance(holder, dict):
            new = rng.choice((*names, str(key)[:-1], str(key).upper(), *map(str, SCALARS[:30])))
            holder[new] = holder.pop(str(key))
        elif kind == 5:
            other = rng.choice(holders)
            there = list(other) if isinstance(other, dict) else list(range(len(other)))
            if there:
                holder[key] = copy.deepcopy(other[rng.choice(there)])  # type: ignore[index]
        else:
            old = holder[key]  # type: ignore[index]
            holder[key] = rng.choice(([old], {"a": old}, str(old), [old, old]))  # type: ignore[index]
        return value


def _collect(value: object, found: list[dict[str, object] | list[object]]) -> None:
    """Add all mappings and lists in a value; without recursion, as some are nested deeply."""
    queue = [value]
    while queue:
        node = queue.pop()
        if isinstance(node, dict):
            found.append(node)
            queue += node.values()
        elif isinstance(node, list):
            found.append(node)
            queue += node


def as_yaml(value: object) -> bytes:
    """Return a value in YAML's flow style."""
    return _flow(value, 0).encode("utf-8", "surrogatepass")


def _flow(value: object, depth: int) -> str:
    if isinstance(value, Mapping):
        between = ", " if depth else ",\n "
        return (
            "{"
            + between.join(f"{_text(str(k))}: {_flow(v, depth + 1)}" for k, v in value.items())
            + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item, depth + 1) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii="\ud800" <= max(value, default="") <= "\udfff")
