"""Measures an adapter on validation examples: each batch at most once for the same weights.

What a validation's metrics mean for the trial, and when it is due, is decided elsewhere.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from trainers.lora.data.dataset import Dataset
from trainers.lora.options import LoraOptions
from trainers.lora.passes import Passes
from trainers.lora.validation.eval_sets import EvalPart, EvalSets
from trainers.lora.validation.generation import Answer, Generator, Question
from trainers.lora.validation.metrics import AnswerMetrics
from trainers.lora.validation.results import BatchSums, Indices, Measured, Results

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Due:
    """A validation that is due.

    Attributes:
        key: Of the adapter.
        parts: The examples.
        results: What was computed with these weights before.
        max_loss: A loss above it has diverged.
    """

    key: int
    parts: Sequence[EvalPart]
    results: Results
    max_loss: float


class Validator:
    """Validates adapters on one base model."""

    def __init__(
        self,
        options: LoraOptions,
        dataset: Dataset,
        sets: EvalSets,
        passes: Passes,
        generator: Generator,
    ) -> None:
        """Prepare what all validations share.

        Raises:
            ValueError: Answers are to be measured, but no example has a question.
        """
        self.sets = sets
        self._options = options
        self._dataset = dataset
        self._passes = passes
        self._generator = generator
        self._metrics: AnswerMetrics | None = None
        self._questions: dict[int, Question] = {}
        if options.generates:
            self._metrics = AnswerMetrics(options.answer_metrics, options.bleu_tokenize)
            found = generator.questions(dataset.validation)
            self._questions = {question.index: question for question in found}
            for index in range(1, sets.num_different + 1):
                self._check_asks(sets.at(index, sets.num_different))

    def validate(
        self, key: int, parts: Sequence[EvalPart], results: Results, max_loss: float = math.inf
    ) -> Measured:
        """Return the metrics of a trial's adapter on these examples.

        Args:
            key: The adapter's, in this validator's pool.
            parts: From this validator's sets.
            results: What was computed with these weights before; added to.
            max_loss: A loss above it has diverged; on a first pass, the rest is spared.
        """
        start = time.perf_counter() - results.take_seconds()
        metrics: dict[str, float] = {}
        first_pass = _first_pass(parts)
        if first_pass:
            loss = sum(self._sums(key, first_pass, results).values(), BatchSums()).mean_loss
            metrics["eval_first_pass_loss"] = loss
            if not loss <= max_loss:
                count = sum(len(part.indices) for part in first_pass)
                what = f"validation loss {loss:.6g} on the first {count} examples"
                return Measured(metrics, (), time.perf_counter() - start, what)
        metrics = {**self._loss_metrics(self._sums(key, parts, results)), **metrics}
        diverged, answers = None, []
        if not metrics["eval_loss"] <= max_loss:
            diverged = f"validation loss {metrics['eval_loss']:.6g}"
        elif self._metrics is not None:
            answers = self._answers(key, parts, results)
            metrics.update(self._metrics.measure(answers))
        metrics["eval_runtime"] = time.perf_counter() - start
        samples = tuple(asdict(answer) for answer in answers)
        return Measured(metrics, samples, metrics["eval_runtime"], diverged)

    def measure_together(self, due: Sequence[Due]) -> None:
        """Compute what these validations need in passes that they share; keep it in their results.

        An error is left to the validation that it belongs to, which computes what is missing.
        """
        try:
            self._measure_all({d.key: self._batches(_first_pass(d.parts)) for d in due}, due)
            left = [d for d in due if self._passes_first(d)]
            self._measure_all({d.key: self._batches(d.parts) for d in left}, left)
        except Exception as error:
            log.info("validations are made one by one, as together they failed: %s", error)

    def _measure_all(self, batches: Mapping[int, Sequence[Indices]], due: Sequence[Due]) -> None:
        start = time.perf_counter()
        results = {d.key: d.results for d in due}
        missing = {
            key: [batch for batch in of_trial if batch not in results[key].sums]
            for key, of_trial in batches.items()
        }
        found = self._passes.measure(missing)
        num_batches = sum(map(len, missing.values()))
        for key, of_trial in missing.items():
            results[key].sums.update(zip(of_trial, found[key], strict=True))
            share = len(of_trial) / max(num_batches, 1)
            results[key].seconds += share * (time.perf_counter() - start)

    def _passes_first(self, due: Due) -> bool:
        """Return whether a trial's loss on the first pass allows for the rest."""
        batches = self._batches(_first_pass(due.parts))
        first = sum((due.results.sums[batch] for batch in batches), BatchSums())
        return not batches or first.mean_loss <= due.max_loss

    def _batches(self, parts: Sequence[EvalPart]) -> list[Indices]:
        return [batch for part in parts for batch in self._by_length(part.indices)]

    def _check_asks(self, parts: Sequence[EvalPart]) -> None:
        num_examples = sum(len(part.indices) for part in parts)
        if not any(index in self._questions for part in parts for index in part.indices):
            raise ValueError(
                f"eval_metrics: none of {num_examples} validation examples has a prompt and a whole "
                f"answer within max_length: {self._options.max_length}, so there is nothing to "
                f"generate. Give a larger max_length, more examples, or no eval_metrics."
            )

    def _sums(self, key: int, parts: Sequence[EvalPart], results: Results) -> dict[str, BatchSums]:
        """Return the sums of each validation set, in the order of its batches."""
        batches = [(part.name, batch) for part in parts for batch in self._by_length(part.indices)]
        missing = [batch for _, batch in batches if batch not in results.sums]
        found = self._passes.measure({key: missing})[key]
        results.sums.update(zip(missing, found, strict=True))
        sums: dict[str, BatchSums] = {}
        for name, batch in batches:
            sums[name] = sums.get(name, BatchSums()) + results.sums[batch]
        return sums

    def _by_length(self, indices: Sequence[int]) -> list[Indices]:
        """Return batches, rows of like length together to save padding."""
        examples = self._dataset.validation
        order = sorted(indices, key=lambda index: (-len(examples[index].input_ids), index))
        return _chunks(order, self._options.per_device_eval_batch_size)

    def _loss_metrics(self, sums: Mapping[str, BatchSums]) -> dict[str, float]:
        whole = sum(sums.values(), BatchSums())
        metrics = {
            "eval_loss": whole.mean_loss,
            "perplexity": math.exp(whole.mean_loss) if whole.mean_loss < 700 else math.inf,
            "eval_token_accuracy": whole.accuracy,
        }
        if len(self.sets.names) > 1:
            for name, of_set in sums.items():
                metrics[f"eval_{name}_loss"] = of_set.mean_loss
                metrics[f"eval_{name}_token_accuracy"] = of_set.accuracy
        return metrics

    def _answers(self, key: int, parts: Sequence[EvalPart], results: Results) -> list[Answer]:
        """Return answers to the first questions of these examples, from every set its share."""
        batches = []
        left = {name: self._num_questions(name) for name in self.sets.names}
        for part in parts:
            asked = [index for index in part.indices if index in self._questions]
            asked = asked[: left[part.name]]
            left[part.name] -= len(asked)
            batches += self._by_length_of_prompt(asked)
        missing = [batch for batch in batches if batch not in results.answers]
        for batch in missing:
            results.answers[batch] = self._generate(key, batch)
        return [answer for batch in batches for answer in results.answers[batch]]

    def _num_questions(self, name: str) -> int:
        limit = self._options.eval_generate_max_samples
        return len(self._questions) if limit is None else self.sets.share(limit, name)

    def _by_length_of_prompt(self, indices: Sequence[int]) -> list[Indices]:
        order = sorted(indices, key=lambda i: (-len(self._questions[i].prompt_ids), i))
        return _chunks(order, self._options.per_device_eval_batch_size)

    def _generate(self, key: int, batch: Indices) -> list[Answer]:
        questions = [self._questions[index] for index in batch]
        self._passes.activate(key)
        size = self._options.per_device_eval_batch_size
        return self._generator.answer(questions, self._options.max_new_tokens, size)


def _first_pass(parts: Sequence[EvalPart]) -> list[EvalPart]:
    return [part for part in parts if part.is_first_pass]


def _chunks(order: Sequence[int], size: int) -> list[Indices]:
    return [tuple(order[start : start + size]) for start in range(0, len(order), size)]
