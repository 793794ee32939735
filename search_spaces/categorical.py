"""Choices to search: `type: categorical`, a list of scalars or a mapping of names to values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from optuna.distributions import CategoricalDistribution
from optuna.trial import BaseTrial
from pydantic import PlainValidator, WithJsonSchema

from search_spaces.entries import Fault, Searched
from search_spaces.values import Scalar, is_scalar, plain, same, shown


class Label(str):
    """A choice's name that stands for a value which expressions cannot handle."""

    __slots__ = ("value",)
    value: object

    @classmethod
    def of(cls, name: str, value: object) -> Label:
        label = cls(name)
        label.value = value
        return label


def _choices(value: object) -> object:
    if not isinstance(value, list | tuple | Mapping):
        raise ValueError(
            f"must be a list, as in [8, 16, 32], or a mapping of names to values; "
            f"is {shown(value)}."
        )
    if not value:
        raise ValueError("must hold at least one choice.")
    copy = plain(value)
    return tuple(copy) if isinstance(copy, list) else copy


SCALAR_LIST_SCHEMA: dict[str, object] = {
    "type": "array",
    "items": {"type": ["boolean", "number", "string", "null"]},
    "minItems": 1,
}
Choices = Annotated[
    tuple[object, ...] | dict[str, object],
    PlainValidator(_choices),
    WithJsonSchema({"anyOf": [SCALAR_LIST_SCHEMA, {"type": "object", "minProperties": 1}]}),
]


class CategoricalParameter(Searched):
    """One of some choices.

    Expressions read a choice's value; where any of the values is a list or mapping, they read the
    choices' names instead.
    """

    type: Literal["categorical"]
    choices: Choices

    def faults(self) -> Iterator[Fault]:
        if isinstance(self.choices, tuple):
            yield from _list_faults(self.choices)
            return
        earlier: list[str] = []
        for name, value in self.choices.items():
            for other in earlier:
                if same(value, self.choices[other]):
                    yield ("choices", name), f"has the same value as {other!r}. Keep one."
            earlier.append(name)

    def distribution(self) -> CategoricalDistribution:
        return CategoricalDistribution(self.points())

    def suggest(self, trial: BaseTrial, name: str) -> Scalar:
        return self.stored(trial.suggest_categorical(name, self.points()))

    def points(self) -> Sequence[Scalar]:
        return [choice for choice in self.choices if is_scalar(choice)]  # type: ignore[misc]

    def probe_points(self) -> Sequence[Scalar]:
        return self.points()

    def stored(self, given: object) -> Scalar:
        for choice in self.points():
            if same(choice, given):
                return choice
        if isinstance(self.choices, dict):
            return self.stored_from_value(given)
        raise ValueError(self._no_choice(given))

    def stored_from_value(self, value: object) -> Scalar:
        if isinstance(self.choices, tuple):
            return self.stored(value)
        for name, choice in self.choices.items():
            if same(choice, value):
                return name
        raise ValueError(self._no_choice(value))

    def seen(self, stored: Scalar) -> object:
        if isinstance(self.choices, tuple):
            return stored
        assert isinstance(stored, str)
        value = self.choices[stored]
        if all(is_scalar(choice) for choice in self.choices.values()):
            return value
        return Label.of(stored, value)

    def _no_choice(self, given: object) -> str:
        allowed = ", ".join(shown(choice) for choice in self.points())
        return f"{shown(given)} is not one of the choices: {allowed}."


def _list_faults(choices: tuple[object, ...]) -> Iterator[Fault]:
    for index, choice in enumerate(choices):
        if not is_scalar(choice):
            kind = "mapping" if isinstance(choice, dict) else "list"
            yield (
                ("choices", index),
                f"{shown(choice)} is a {kind}, and a {kind} needs a name. Write the choices as a "
                f"mapping, as in choices: {{attention: [q_proj, v_proj], all: all-linear}}.",
            )
        elif choice in choices[:index]:  # Optuna compares so too: 1, 1.0 and true are one choice
            yield (
                ("choices", index),
                f"{shown(choice)} is equal to an earlier choice (1, 1.0 and true are equal too). "
                f"Keep one, or name them, as in choices: {{one: 1, flag: true}}.",
            )
