"""What is wrong with a search space: problems, collected and raised together.

A problem knows where it is in the document (a path of keys), not its line: whoever read the file
turns the path into line and column.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a document.

    Attributes:
        path: Keys and indices from the document's root, as in ``("space", "lora_r", "low")``.
        message: What is wrong, the value, what is allowed and what to do, in one or two sentences.
        at_key: The key itself is wrong (unknown, misplaced), not its value.
    """

    path: Path
    message: str
    at_key: bool = False


class SpaceError(ValueError):
    """A search space has problems: all of them, not the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(_line(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[SpaceError], tuple[tuple[Problem, ...]]]:
        return (SpaceError, (self.problems,))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def _line(problem: Problem) -> str:
    return f"{'.'.join(map(str, problem.path))}: {problem.message}"
