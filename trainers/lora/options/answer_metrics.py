"""The names of the metrics of generated answers, and what each reports.

Loads neither torch nor what measures, so that options are checked fast.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Literal

from trainers.lora.dotted_path import is_dotted_path

REPORTED: Mapping[str, tuple[str, ...]] = {
    "exact_match": ("exact_match",),
    "bleu": ("bleu",),
    "rouge": ("rouge1", "rouge2", "rougeL"),
    "distinct": ("distinct_1", "distinct_2"),
    "repetition": ("repetition",),
    "length": ("gen_len",),
    "classification": ("accuracy", "precision", "recall", "f1"),
}
"""The option's name of a metric -> the names under which its values are reported."""

BleuTokenizer = Literal["13a", "intl", "zh", "char", "none"]
"""Those of sacrebleu that need no further package and no download."""

_LOWER_IS_BETTER = ("loss", "perplexity", "repetition", "runtime")


def check_metric_names(names: Sequence[str]) -> None:
    """Check names as options give them; nothing is imported.

    Raises:
        ValueError: A name is neither known nor a dotted path, or is given twice.
    """
    for index, name in enumerate(names):
        if name not in REPORTED and not is_dotted_path(name):
            raise ValueError(
                f"metrics: unknown metric {name!r}.{_near(name)} Known: {', '.join(REPORTED)}. For "
                f"your own give a dotted path to a function, as in 'my_package.module:my_metric'."
            )
        if name in names[:index]:
            raise ValueError(f"metrics: {name!r} is given twice. Leave one of them out.")


def reported_names(names: Sequence[str]) -> frozenset[str] | None:
    """Return under which names these metrics are reported; None if only running them tells."""
    if any(name not in REPORTED for name in names):
        return None
    return frozenset(reported for name in names for reported in REPORTED[name])


def greater_is_better(name: str) -> bool:
    """Return whether a reported metric, of answers or not, is better when it is greater.

    It goes by the name's ending, as transformers does, which knows of ``loss`` alone.
    """
    return not name.endswith(_LOWER_IS_BETTER)


def _near(name: str) -> str:
    reported = {value: key for key, values in REPORTED.items() for value in values}
    if name in reported:
        return f" {name!r} is reported by {reported[name]!r}: give that."
    near = difflib.get_close_matches(name.lower(), REPORTED, n=2)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
