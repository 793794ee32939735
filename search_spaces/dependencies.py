"""The order in which parameters can be decided, and the circles that leave none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search_spaces.problems import Problem


def dependency_order(
    reads: Mapping[str, Sequence[str]], problems: list[Problem]
) -> tuple[str, ...]:
    """Return every name after those that it reads, otherwise in the given order.

    A circle becomes a problem that names it, and is cut.
    """
    order: dict[str, None] = {}
    path: list[str] = []

    def place(name: str) -> None:
        if name in path:
            circle = path[path.index(name) :]
            problems.append(_circle(circle))
        elif name not in order:
            path.append(name)
            for read in reads[name]:
                place(read)
            path.pop()
            order[name] = None

    for name in reads:
        place(name)
    return tuple(order)


def _circle(names: Sequence[str]) -> Problem:
    shown = " -> ".join([*names, names[0]])
    return Problem(
        ("space", names[0]),
        f"{names[0]!r} depends on itself: {shown}. Change a `when` or `value` of these.",
    )
