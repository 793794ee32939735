"""Metrics of answers: values by hand and by the libraries, names, and the user's own."""

from __future__ import annotations

import math
import random
import warnings

import pytest

from tests.new_process import printed_by
from trainers.lora.options.answer_metrics import (
    REPORTED,
    check_metric_names,
    greater_is_better,
    reported_names,
)
from trainers.lora.validation import answer_scores
from trainers.lora.validation.generation import Answer
from trainers.lora.validation.metrics import AnswerMetrics

OWN = "tests.trainers.own_metrics"


def answers(*pairs: tuple[str, str]) -> list[Answer]:
    """Return answers from pairs of generated and expected text."""
    return [
        Answer(number, f"prompt {number}", expected, generated, len(generated), True)
        for number, (generated, expected) in enumerate(pairs)
    ]


def measure(name: str, *pairs: tuple[str, str]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return AnswerMetrics([name]).measure(answers(*pairs))


def test_importing_the_names_loads_no_library() -> None:
    libraries = ("torch", "transformers", "sklearn", "sacrebleu", "rouge_score", "numpy", "nltk")
    code = (
        "import sys; from trainers.lora.options.answer_metrics import check_metric_names;"
        f"check_metric_names(['rouge', 'bleu', '{OWN}:echo']);"
        f"print([name for name in {libraries} if name in sys.modules])"
    )
    assert printed_by(code) == "[]"


@pytest.mark.parametrize("name", REPORTED)
def test_every_metric_reports_its_names_for_any_texts(name: str) -> None:
    letters = random.Random(0)
    odd = [
        "",
        " ",
        "one",
        "a b c d e",
        "ÄÖ\u0301 你好",
        "\ud7ff\x00",
        "{",
        '{"a": 1}',
        "!" * 40,
        "\n",
    ]
    for _ in range(20):
        pairs = [(letters.choice(odd), letters.choice(odd)) for _ in range(letters.randint(1, 25))]
        values = measure(name, *pairs)
        assert tuple(values) == REPORTED[name]
        assert all(type(value) is float and math.isfinite(value) for value in values.values())


@pytest.mark.parametrize(
    ("generated", "expected", "is_right"),
    [
        ("yes", " yes\n", True),
        ("Yes", "yes", False),
        ("", "", True),
        ("", "yes", False),
        ('{"b": [1, 2], "a": {"x": null}}', '{"a":{"x":null},"b":[1.0,2e0]}', True),
        ('{"a": [2, 1]}', '{"a": [1, 2]}', False),
        ('{"a": true}', '{"a": 1}', False),
        ('{"a": "1"}', '{"a": 1}', False),
        ('{"a": "\\u00e4"}', '{"a": "ä"}', True),
        ("1.0", "1", False),  # numbers alone are texts
        ('{"a": 1', '{"a": 1}', False),
        ("{'a': 1}", '{"a": 1}', False),
        ('[{"a": 9007199254740993}]', '[{"a": 9007199254740992}]', False),
        ("[NaN]", "[NaN ]", False),
        ("[1e999]", "[2e999]", False),
        ("[" * 100_000, "[]", False),
        ("[" + "9" * 5000 + "]", "[9]", False),
    ],
)
def test_an_exact_match_compares_json_by_meaning_and_texts_without_blanks(
    generated: str, expected: str, is_right: bool
) -> None:
    assert measure("exact_match", (generated, expected)) == {"exact_match": float(is_right)}


def test_exact_match_is_a_share() -> None:
    pairs = [("a", "a"), ("b", "a"), ("[1]", "[ 1 ]"), ("", "a")]
    assert measure("exact_match", *pairs) == {"exact_match": 0.5}


def test_bleu_is_that_of_the_corpus() -> None:
    # By hand: 1-grams 5/5, 2-grams 3/4, 3-grams 2/3, 4-grams 1/2; 5 words against 6.
    value = measure("bleu", ("the cat sat on mat", "the cat sat on the mat"))["bleu"]
    by_hand = math.exp(1 - 6 / 5) * (5 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * 100
    assert value == pytest.approx(by_hand)


def test_bleu_is_sacrebleus_default_where_an_answer_has_four_words() -> None:
    import sacrebleu

    words = random.Random(1)
    pairs = [
        tuple(" ".join(words.choices(["a", "b", "c", ",d", "e."], k=size)) for _ in "ab")
        for size in (1, 3, 4, 9, 12)
    ]
    generated, expected = zip(*pairs, strict=True)
    score = sacrebleu.corpus_bleu(generated, [expected]).score
    assert 0 < score < 100
    assert answer_scores.bleu(generated, expected)["bleu"] == pytest.approx(score)


def test_bleu_of_short_and_empty_answers() -> None:
    assert measure("bleu", ("one", "one"), ("two", "two")) == {"bleu": 100.0}
    assert measure("bleu", ("one", "one"), ("two", "six"))["bleu"] == pytest.approx(50)
    assert measure("bleu", ("", "one"), ("", "two words")) == {"bleu": 0.0}
    assert measure("bleu", ("", "")) == {"bleu": 0.0}


def test_bleu_can_split_texts_without_blanks() -> None:
    pair = answers(("你好世界", "你好吗世界"))
    assert AnswerMetrics(["bleu"]).measure(pair)["bleu"] == 0
    assert AnswerMetrics(["bleu"], bleu_tokenize="char").measure(pair)["bleu"] > 30
    assert AnswerMetrics(["bleu"], bleu_tokenize="zh").measure(pair)["bleu"] > 30


def test_rouge_by_hand() -> None:
    # Four of five words are right, two of four pairs ("the cat", "on the"), and all four in order.
    values = measure("rouge", ("the cat was on the", "the cat sat on the"))
    assert values == pytest.approx({"rouge1": 0.8, "rouge2": 0.5, "rougeL": 0.8})
    swapped = measure("rouge", ("b a", "a b"))
    assert swapped == pytest.approx({"rouge1": 1.0, "rouge2": 0.0, "rougeL": 0.5})
    halves = measure("rouge", ("one", "one"), ("", "two"))
    assert halves == pytest.approx({"rouge1": 0.5, "rouge2": 0.0, "rougeL": 0.5})


def test_rouge_is_rouge_scores_own_for_ascii_texts() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    signs = random.Random(2)
    printable = "".join(map(chr, range(32, 127))) + "\n\t    "
    names = list(REPORTED["rouge"])
    scorer = RougeScorer(names)
    for _ in range(50):
        texts = ["".join(signs.choices("aB1_ " + printable, k=60)) for _ in "ab"]
        own = scorer.score(texts[1], texts[0])
        assert measure("rouge", (texts[0], texts[1])) == {
            name: own[name].fmeasure for name in names
        }


def test_rouge_sees_letters_beyond_ascii() -> None:
    assert measure("rouge", ("Straße über", "straße ÜBER"))["rouge2"] == pytest.approx(1)
    assert measure("rouge", ("你好世界", "你好吗"))["rougeL"] == pytest.approx(4 / 7)  # 2/4, 2/3
    assert measure("rouge", ("привет мир", "привет"))["rouge1"] == pytest.approx(2 / 3)


def test_distinct_counts_over_all_answers() -> None:
    values = measure("distinct", ("a b a", "x"), ("a b", "x"), ("", "x"))
    assert values == {"distinct_1": 2 / 5, "distinct_2": 2 / 3}
    assert measure("distinct", ("", "x")) == {"distinct_1": 0.0, "distinct_2": 0.0}


def test_repetition_is_the_mean_share_of_said_4_grams() -> None:
    # "a b c d" comes twice among five 4-grams; eleven marks make one 4-gram eight times.
    values = measure("repetition", ("a b c d a b c d", ""), ("!" * 11, ""), ("a a a", ""), ("", ""))
    assert values["repetition"] == pytest.approx((1 / 5 + 7 / 8) / 4)


def test_length_is_in_tokens() -> None:
    assert measure("length", ("abcd", "x"), ("", "x")) == {"gen_len": 2.0}


def test_classification_by_hand() -> None:
    # yes: 2 right of 3 answered and 2 expected; no: 1 of 1 and 2; maybe: 0 of 1 and 1. One other.
    expected = ["yes", "yes", "no", "no", "maybe", "maybe "]
    generated = [" yes", "yes\n", "yes", "no", "none of them", "no"]
    values = measure("classification", *zip(generated, expected, strict=True))
    assert values["accuracy"] == pytest.approx(3 / 6)
    assert values["precision"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert values["recall"] == pytest.approx((2 / 2 + 1 / 2 + 0 / 2) / 3)
    assert values["f1"] == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)


def test_classification_of_one_label_and_of_wrong_answers() -> None:
    perfect = {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert measure("classification", ("a", "a"), ("a", "a")) == perfect
    assert measure("classification", *[(str(i), str(i)) for i in range(40)]) == perfect
    assert set(measure("classification", ("b", "a"), ("", "a")).values()) == {0.0}


def test_the_users_own_metrics_are_called_with_what_they_take() -> None:
    names = ["share_of_digits", "lengths", "echo", "greedy_for_arguments", "Holder.half"]
    metrics = AnswerMetrics(["exact_match", *(f"{OWN}:{name}" for name in names)])
    values = metrics.measure(answers(("1a", "1a"), ("prompt", "x"), ("23", "y")))
    assert values == {
        "exact_match": 1 / 3,
        "share_of_digits": 3 / 10,
        "answer_length": 10 / 3,
        "num_references": 3.0,
        "first_length": 2.0,
        "echo": 1 / 3,
        "greedy_for_arguments": 0.0,
        "half": 0.5,
    }
    assert all(type(value) is float for value in values.values())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fails", "fails' failed: ZeroDivisionError: of my own"),
        ("returns_text", "returned '0.5' \\(str\\).*Return a number"),
        ("returns_bool", "returned True \\(bool\\)"),
        ("returns_nothing", "returned None"),
        ("returns_array", "returned array"),
        ("names_by_number", "the name 1"),
    ],
)
def test_what_a_users_metric_does_wrong_names_its_path(name: str, said: str) -> None:
    metrics = AnswerMetrics([f"{OWN}:{name}"])
    with pytest.raises(ValueError, match=f"{OWN}:{name}.*{said}" if name != "fails" else said):
        metrics.measure(answers(("a", "a")))


def test_two_metrics_of_one_name_are_refused() -> None:
    metrics = AnswerMetrics(["bleu", f"{OWN}:bleu"])
    with pytest.raises(ValueError, match=f"'{OWN}:bleu' reports 'bleu', which another"):
        metrics.measure(answers(("a", "a")))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rogue", "unknown metric 'rogue'. Did you mean 'rouge'\\? Known: exact_match"),
        ("ROUGE", "Did you mean 'rouge'"),
        ("rougeL", "'rougeL' is reported by 'rouge': give that"),
        ("f1", "reported by 'classification'"),
        ("pkg.mod.fn", "my_package.module:my_metric"),
        ("", "unknown metric ''"),
        (f"{OWN}:absent", "has no absent"),
        ("no.such.module:metric", "no.such.module cannot be imported \\(ModuleNotFoundError"),
        (f"{OWN}:NO_FUNCTION", "is no function \\(int\\)"),
        (f"{OWN}:Holder", "is no function"),
        (f"{OWN}:takes_one", "cannot be called as my_metric\\(predictions, references\\)"),
    ],
)
def test_names_that_lead_nowhere_are_refused_with_what_to_do(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AnswerMetrics([name])


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'rouge' is given twice"):
        check_metric_names(["rouge", "bleu", "rouge"])


def test_no_answers_are_refused_and_not_scored() -> None:
    with pytest.raises(ValueError, match="larger max_length"):
        AnswerMetrics(["bleu"]).measure([])


def test_reported_names_are_known_before_unless_they_are_the_users() -> None:
    assert reported_names(["rouge", "length"]) == {"rouge1", "rouge2", "rougeL", "gen_len"}
    assert reported_names([]) == frozenset()
    assert reported_names(["rouge", f"{OWN}:echo"]) is None


def test_which_metrics_are_better_when_lower() -> None:
    lower = ["eval_loss", "loss", "eval_math_loss", "perplexity", "eval_perplexity", "repetition"]
    assert not any(map(greater_is_better, lower))
    higher = [name for names in REPORTED.values() for name in names if name != "repetition"]
    assert all(map(greater_is_better, [*higher, "eval_token_accuracy", "my_own"]))
