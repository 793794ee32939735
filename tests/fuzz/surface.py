"""What a surface is: something of `hpo` that reads what others have written."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hpo.errors import HpoError
from tests.fuzz.mutation import Mutator

ALLOWED: tuple[type[Exception], ...] = (HpoError, ValueError)
"""The project's own errors; SpaceError and pydantic's are ValueErrors, and so is what trainers raise."""


@dataclass(frozen=True)
class Attempt:
    """One input, written and ready to be read.

    Attributes:
        action: Reads it.
        content: What was written, to be kept where it fails.
        name: The file's name, or what was changed.
        allowed: The errors that it may end in.
    """

    action: Callable[[], object]
    content: bytes
    name: str
    allowed: tuple[type[Exception], ...] = (HpoError,)


class Surface(Protocol):
    """Makes inputs of one kind.

    Attributes:
        name: Of its folder of seeds, too.
        weight: Its share of the inputs.
    """

    name: str
    weight: int

    def attempt(self, folder: Path, rng: random.Random) -> Attempt:
        """Write an input into an empty folder."""
        ...


@dataclass
class Seeds:
    """Good files and their values, from which bad ones are made.

    Attributes:
        texts: Name -> file.
        trees: Values of the same kind of file.
        names: Keys that mean something in such a file.
    """

    texts: dict[str, bytes]
    trees: list[object] = field(default_factory=list)
    names: tuple[str, ...] = ()

    def draw(self, rng: random.Random, dump: Callable[[object], bytes]) -> tuple[str, bytes]:
        """Return the name of a seed, and a bad file made of it."""
        mutator = Mutator(rng)
        name, text = rng.choice(sorted(self.texts.items()))
        if self.trees and rng.random() < 0.6:
            content = dump(mutator.tree(rng.choice(self.trees), self.names))
            return name, mutator.bytes(content) if rng.random() < 0.1 else content
        return name, mutator.bytes(text, sorted(self.texts.values()))
