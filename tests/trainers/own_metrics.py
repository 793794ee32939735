"""Metrics of answers as a user would write them; the tests name them by dotted path."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NO_FUNCTION = 3


def share_of_digits(predictions: list[str], references: list[str]) -> float:
    text = "".join(predictions)
    return sum(letter.isdigit() for letter in text) / max(len(text), 1)


def lengths(predictions: list[str], references: list[str]) -> Mapping[str, object]:
    """Numbers as libraries return them."""
    return {
        "answer_length": np.mean([len(text) for text in predictions]),
        "num_references": len(references),
        "first_length": np.asarray(np.float32(len(predictions[0]))),
    }


def echo(predictions: list[str], references: list[str], prompts: list[str]) -> float:
    pairs = zip(predictions, prompts, strict=True)
    return sum(prediction in prompt for prediction, prompt in pairs) / len(prompts)


def greedy_for_arguments(predictions: list[str], references: list[str], **arguments: object) -> int:
    predictions.clear()
    return len(arguments)


def bleu(predictions: list[str], references: list[str]) -> float:
    return 0.5


class Holder:
    @staticmethod
    def half(predictions: list[str], references: list[str]) -> float:
        return 0.5


def fails(predictions: list[str], references: list[str]) -> float:
    raise ZeroDivisionError("of my own")


def returns_text(predictions: list[str], references: list[str]) -> str:
    return "0.5"


def returns_bool(predictions: list[str], references: list[str]) -> bool:
    return True


def returns_nothing(predictions: list[str], references: list[str]) -> None:
    return None


def returns_array(predictions: list[str], references: list[str]) -> object:
    return np.zeros(2)


def names_by_number(predictions: list[str], references: list[str]) -> Mapping[object, float]:
    return {1: 0.5}


def takes_one(predictions: list[str]) -> float:
    return 0.0
