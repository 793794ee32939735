"""How answers are scored: each function takes lists of texts, none of them empty lists.

Reads no options and knows no model. The libraries are imported when they are needed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

# A letter or digit of a script without blanks between words is a word of its own.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+"
_WORDS = re.compile(_WORD)
_WORDS_AND_MARKS = re.compile(rf"{_WORD}|\S")


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the share of answers that are right.

    If both texts are JSON objects or arrays they are compared as such (order of keys and blanks do
    not matter, 1 is 1.0 and not true), else without blanks around them.
    """
    pairs = zip(predictions, references, strict=True)
    num_right = sum(_is_match(prediction, reference) for prediction, reference in pairs)
    return {"exact_match": num_right / len(predictions)}


def bleu(
    predictions: Sequence[str], references: Sequence[str], tokenize: str = "13a"
) -> dict[str, float]:
    """Return sacrebleu's corpus BLEU, from 0 to 100.

    Where not one answer has four words, the orders that occur are counted (sacrebleu's
    ``effective_order``), or a set of short answers could not score at all. LLaMA-Factory's
    ``bleu-4`` is another measure: the mean of NLTK's sentence BLEU over characters, smoothed.
    ``tokenize="char"`` comes closest to it.

    Source: Post, https://arxiv.org/abs/1804.08771.
    """
    from sacrebleu.metrics import BLEU

    # force: no warning about texts that look tokenised already
    metric = BLEU(tokenize=tokenize, effective_order=True, force=True)
    score = float(metric.corpus_score(list(predictions), [list(references)]).score)
    return {"bleu": min(score, 100.0)}  # rounding takes a perfect score a little above


class _Tokenizer:
    """Words for rouge-score: its own for ASCII, while its own drops all other letters."""

    def tokenize(self, text: str) -> list[str]:
        return _WORDS.findall(text.lower())


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the means of rouge-score's F-measures, from 0 to 1, without stemming.

    Source: Lin, https://aclanthology.org/W04-1013.
    """
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, tokenizer=_Tokenizer())
    pairs = zip(references, predictions, strict=True)
    scores = [scorer.score(reference, prediction) for reference, prediction in pairs]
    return {
        name: sum(float(score[name].fmeasure) for score in scores) / len(scores) for name in names
    }


def distinct(predictions: Sequence[str]) -> dict[str, float]:
    """Return how many of all answers' words, and of their pairs, are different; 0 without any.

    Source: Li et al., https://arxiv.org/abs/1510.03055, section 5.2 (there per token too).
    """
    return {f"distinct_{order}": _distinct(predictions, order) for order in (1, 2)}


def repetition(predictions: Sequence[str]) -> dict[str, float]:
    """Return the mean share of an answer's 4-grams that it has said before; 0 for short answers.

    Source: seq-rep-4 of Welleck et al., https://arxiv.org/abs/1908.04319, section 6.
    """
    shares = []
    for prediction in predictions:
        grams = _grams(prediction, 4)
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return {"repetition": sum(shares) / len(shares)}


def classification(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return accuracy, and precision, recall and F1 as means over the labels (macro).

    The labels are the expected texts. An answer that is none of them is wrong: it lowers the
    recall of the label that was expected. A label that was never answered has precision 0.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    labels = sorted({reference.strip() for reference in references})
    numbers = {label: number for number, label in enumerate(labels)}
    expected = [numbers[reference.strip()] for reference in references]
    answered = [numbers.get(prediction.strip(), len(labels)) for prediction in predictions]
    precision, recall, f1, _ = precision_recall_fscore_support(
        expected, answered, labels=range(len(labels)), average="macro", zero_division=0
    )
    return {
        "accuracy": float(accuracy_score(expected, answered)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }


def _is_match(prediction: str, reference: str) -> bool:
    if prediction.strip() == reference.strip():
        return True
    expected = _canonical_json(reference)
    return expected is not None and _canonical_json(prediction) == expected


def _canonical_json(text: str) -> str | None:
    """Return an object or array in a form that is equal for equal JSON; None for other texts."""
    try:
        value = json.loads(text, parse_float=_parse_float, parse_constant=_refuse)
        # RecursionError: a model that repeats itself nests deeply
        return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else None
    except (ValueError, RecursionError):
        return None


def _parse_float(text: str) -> float | int:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large")
    return int(value) if value.is_integer() else value


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _distinct(texts: Sequence[str], order: int) -> float:
    grams = [gram for text in texts for gram in _grams(text, order)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _grams(text: str, order: int) -> list[tuple[str, ...]]:
    words = _WORDS_AND_MARKS.findall(text)
    return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]
