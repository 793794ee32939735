"""Metrics of generated answers, by name; the user's own by dotted path.

How a value is computed is in ``answer_scores``; the names are among the options. The metrics of a
forward pass (loss, perplexity, token accuracy) are not here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from trainers.lora.dotted_path import load_dotted_path
from trainers.lora.options.answer_metrics import REPORTED, BleuTokenizer, check_metric_names
from trainers.lora.validation import answer_scores
from trainers.lora.validation.generation import Answer


class AnswerMetrics:
    """The metrics that one trainer measures answers by.

    A metric of the user's own is called as ``metric(predictions, references)`` with two lists of
    texts, and with ``prompts=`` if it has a parameter of that name. It returns a number, which is
    reported under the function's name, or a mapping of names to numbers.
    """

    def __init__(self, names: Sequence[str], bleu_tokenize: BleuTokenizer = "13a") -> None:
        """Load the user's own metrics.

        Args:
            names: Keys of ``REPORTED``, or dotted paths.
            bleu_tokenize: How sacrebleu splits texts into words: ``zh`` for Chinese, ``char`` for
                texts that do not separate words.

        Raises:
            ValueError: A name is not known, or a dotted path leads to nothing that can be called.
        """
        check_metric_names(names)
        self._metrics = [
            _BuiltIn(name, bleu_tokenize) if name in REPORTED else _Own(name) for name in names
        ]

    def measure(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Return all values by the names under which they are reported.

        Raises:
            ValueError: There are no answers; or a metric of the user's own failed, did not return
                numbers, or reports a name that another one reports too: named by its path.
        """
        if not answers:
            raise ValueError(
                "metrics: there are no answers to measure. The validation set has no example with a "
                "prompt and a whole answer within max_length: give a larger max_length, or data "
                "that has both."
            )
        values: dict[str, float] = {}
        for metric in self._metrics:
            for name, value in metric(answers).items():
                if name in values:
                    raise ValueError(
                        f"metrics: {metric.name!r} reports {name!r}, which another metric reports "
                        f"too. Let it return a mapping with a name of its own."
                    )
                values[name] = value
        return values


class _BuiltIn:
    """A metric by its name here."""

    def __init__(self, name: str, bleu_tokenize: BleuTokenizer) -> None:
        self.name = name
        self._bleu_tokenize = bleu_tokenize

    def __call__(self, answers: Sequence[Answer]) -> dict[str, float]:
        predictions = [answer.generated for answer in answers]
        references = [answer.expected for answer in answers]
        match self.name:
            case "exact_match":
                values = answer_scores.exact_match(predictions, references)
            case "bleu":
                values = answer_scores.bleu(predictions, references, self._bleu_tokenize)
            case "rouge":
                values = answer_scores.rouge(predictions, references)
            case "distinct":
                values = answer_scores.distinct(predictions)
            case "repetition":
                values = answer_scores.repetition(predictions)
            case "length":
                values = {"gen_len": sum(answer.num_tokens for answer in answers) / len(answers)}
            case _:
                values = answer_scores.classification(predictions, references)
        assert tuple(values) == REPORTED[self.name]
        return values


class _Own:
    """A metric of the user's own."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._metric = _load_function(path)
        self._takes_prompts = _takes_prompts(path, self._metric)

    def __call__(self, answers: Sequence[Answer]) -> dict[str, float]:
        arguments: dict[str, Any] = {}
        if self._takes_prompts:
            arguments["prompts"] = [answer.prompt for answer in answers]
        predictions = [answer.generated for answer in answers]
        references = [answer.expected for answer in answers]
        try:
            result = self._metric(predictions, references, **arguments)
        except Exception as error:
            raise ValueError(
                f"metrics: {self.name!r} failed: {type(error).__name__}: {error}"
            ) from error
        values = result if isinstance(result, Mapping) else {self._own_name: result}
        return {self._checked_name(name): self._number(name, values[name]) for name in values}

    @property
    def _own_name(self) -> str:
        return self.name.rpartition(":")[2].rpartition(".")[2]

    def _checked_name(self, name: object) -> str:
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"metrics: {self.name!r} returned a mapping with the name {name!r}. Names of "
                f"metrics are texts, as in {{'my_score': 0.5}}."
            )
        return name

    def _number(self, name: object, value: Any) -> float:
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            value = value.item()  # of numpy or torch
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(
                f"metrics: {self.name!r} returned {value!r} ({type(value).__name__}) for {name!r}. "
                f"Return a number, or a mapping of names to numbers."
            )
        return float(value)


def _load_function(path: str) -> Callable[..., object]:
    metric = load_dotted_path(path, "metrics")
    if not callable(metric) or inspect.isclass(metric):
        raise ValueError(
            f"metrics: {path!r} is no function ({type(metric).__name__}). Give a function that is "
            f"called as my_metric(predictions, references) and returns a number or a mapping of "
            f"names to numbers."
        )
    return metric


def _takes_prompts(path: str, metric: Callable[..., object]) -> bool:
    """Return whether a metric has a parameter of that name.

    Raises:
        ValueError: The metric cannot be called with what it will be given.
    """
    try:
        signature = inspect.signature(metric)
    except ValueError:  # of a function in C
        return False
    prompts: dict[str, object] = {"prompts": []} if "prompts" in signature.parameters else {}
    try:
        signature.bind([], [], **prompts)
    except TypeError as error:
        raise ValueError(
            f"metrics: {path!r} cannot be called as my_metric(predictions, references): {error}. "
            f"Give a function that takes both lists of texts, and perhaps 'prompts'."
        ) from None
    return bool(prompts)
