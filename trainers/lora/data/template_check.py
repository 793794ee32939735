"""Refuses chat templates that would take a machine down: they come with models, from anywhere.

transformers renders them in Jinja's sandbox, from which no code gets out. What the sandbox lets
through are a text of a terabyte and a loop without an end; those are caught here.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MAX_NUMBER = 1_000_000
MAX_SIZE = 1_000_000
"""Characters; the longest template of a known model has about 20,000."""

RENDER_LIMIT_S = 1.0
"""Of one conversation, of the processor's time; usual templates take a thousandth."""

_WIDTH = re.compile(r"\d{7,}")
_T = TypeVar("_T")


class _Generation(jinja2.ext.Extension):
    """transformers' tag around answers, which means nothing to a check."""

    tags = {"generation"}  # noqa: RUF012, as in jinja2

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_template(text: str, whose: str) -> None:
    """Read a template without rendering it.

    Raises:
        ValueError: It is no template, or has numbers that no template needs.
    """
    if len(text) > MAX_SIZE:
        raise ValueError(f"chat_template: {whose} has {len(text)} characters, {MAX_SIZE} at most.")
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    try:
        tree = environment.parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"chat_template: {whose}:{error.lineno}: {error.message}.") from None
    except (RecursionError, ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"chat_template: {whose} is no template: {error}.") from None
    for node in tree.find_all((jinja2.nodes.Const, jinja2.nodes.Pow)):
        reason = _reason(node)
        if reason is not None:
            raise ValueError(
                f"chat_template: {whose}:{node.lineno}: {reason}. A template that writes a "
                f"conversation needs none of this: give another."
            )


def _reason(node: jinja2.nodes.Node) -> str | None:
    if isinstance(node, jinja2.nodes.Pow):
        return "'**' is not allowed, as its results have no bound"
    value = getattr(node, "value", None)
    if isinstance(value, int | float) and abs(value) > MAX_NUMBER:
        return f"a number above {MAX_NUMBER}"
    if isinstance(value, str) and ("%" in value or "{" in value) and _WIDTH.search(value):
        return f"a width above {MAX_NUMBER}"
    return None


def within_time(render: Callable[[], _T], whose: str) -> _T:
    """Render, and interrupt it where it does not end. Slow, as every line of it is watched.

    Raises:
        ValueError: The time is up.
    """
    deadline = time.thread_time() + RENDER_LIMIT_S

    def watch(_frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any]:
        if time.thread_time() > deadline:
            raise ValueError(
                f"chat_template: {whose} is not done with one conversation after {RENDER_LIMIT_S:g} s. "
                f"Does it have a loop without an end? Give another."
            )
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        return render()
    finally:
        sys.settrace(before)
