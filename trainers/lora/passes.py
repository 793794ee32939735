"""The gradients of every trial's next step, and the sums of validations.

Decides which trials go through the model together, and what becomes of a pass that fails. How one
pass is computed is in ``pack``, and for what cannot share one in ``lone_pass``.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainers.lora.data.dataset import Dataset
from trainers.lora.lone_pass import LonePass
from trainers.lora.memory import is_out_of_memory
from trainers.lora.model.base_model import BaseModel
from trainers.lora.model.modes import evaluating
from trainers.lora.model.weights import WeightPool
from trainers.lora.pack.ability import Ability
from trainers.lora.pack.packed_pass import EvalPart, PackedPass, TrainPart
from trainers.lora.pack.rows import Rows, lay_out
from trainers.lora.pack.within_memory import Done, WithinMemory
from trainers.lora.seeds import derive_seed
from trainers.lora.trial import Trial
from trainers.lora.validation.results import BatchSums, Indices


@dataclass(frozen=True)
class StepLoss:
    """What a training step measured before the optimizer acts on its gradients.

    Attributes:
        loss: Nats per target token over all passes of the step.
        num_tokens: Tokens that went through the model, without padding.
        seconds: This trial's share of its passes' time, by its tokens.
        num_trials: That were in the last of these passes.
    """

    loss: float
    num_tokens: int
    seconds: float
    num_trials: int


@dataclass(frozen=True)
class PassFailed:
    """A trial's pass raised; ``message`` is the error in one line, the traceback below."""

    message: str


@dataclass(frozen=True)
class PassOutOfMemory:
    """A trial's pass ran out of memory though it had the device's passes for itself.

    Its gradients are as before the step, which can be done again. ``message`` is one line.
    """

    message: str


StepOutcome = StepLoss | PassFailed | PassOutOfMemory


@dataclass
class _Step:
    """A trial's step under way: one batch is done in each pass.

    Attributes:
        batches: Of the step.
        num_done: Of these.
        loss: Nats so far, over all targets.
        seconds: So far.
    """

    batches: list[Rows]
    num_done: int = 0
    loss: float = 0.0
    seconds: float = 0.0

    @property
    def num_targets(self) -> int:
        return sum(rows.num_targets for rows in self.batches)


class Passes:
    """Runs trials through the base model, each with its own weights."""

    def __init__(
        self, base: BaseModel, weights: WeightPool, dataset: Dataset, ability: Ability
    ) -> None:
        self._base = base
        self._weights = weights
        self._dataset = dataset
        self._lone = LonePass(base)
        self._within_memory = WithinMemory(base.device)
        self._pack: PackedPass | None = None
        if ability.head is not None and weights.stacks is not None:
            self._pack = PackedPass(base, weights.stacks, ability.head)
        self._steps: dict[int, _Step] = {}
        self.num_tokens: list[int] = []
        """Of each pass of the newest ``backward``, with padding."""

    def forget(self, key: int) -> None:
        """Drop what a trial has done of a step."""
        self._steps.pop(key, None)

    def activate(self, key: int) -> None:
        """Let the base model compute with this trial's weights."""
        self._weights.activate(key)

    def backward(self, trials: Sequence[Trial]) -> list[StepOutcome | None]:
        """Do one pass for each trial, together where that can be.

        Returns:
            Of each trial its step's loss, with the gradients in its weights; None if the step has
            more batches to come; or what went wrong.
        """
        self.num_tokens.clear()
        found: dict[int, StepOutcome | None] = {}
        parts: dict[int, TrainPart] = {}
        for trial in trials:
            try:
                if self._shares(trial.key):
                    parts[trial.key] = self._next_part(trial)
                else:
                    found[trial.key] = self._lone_step(trial)
            except Exception as error:  # becomes this trial's report; the others go on
                found[trial.key] = _failure(error)
        if parts:
            passed = self._within_memory.run(list(parts.values()), self._train)
            for part, of_pass in zip(parts.values(), passed, strict=True):
                found[part.trial] = self._count(part, of_pass)
        for trial in trials:
            outcome = found[trial.key]
            if outcome is not None:
                self.forget(trial.key)
            if isinstance(outcome, PassOutOfMemory):
                trial.optimizer.zero_grad()
        return [found[trial.key] for trial in trials]

    def measure(self, wanted: Mapping[int, Sequence[Indices]]) -> dict[int, list[BatchSums]]:
        """Return the sums of validation batches under trials' weights as they are now.

        Args:
            wanted: Of each trial, the batches: indices of validation examples.

        Raises:
            Exception: What a pass raised, even with one trial in it.
        """
        found: dict[int, list[BatchSums]] = {key: [] for key in wanted}
        if not any(wanted.values()):
            return found
        with evaluating(self._base.model):
            for number in range(max(map(len, wanted.values()))):
                due = {key: of[number] for key, of in wanted.items() if number < len(of)}
                for key, sums in self._measure_batches(due).items():
                    found[key].append(sums)
        return found

    def _measure_batches(self, due: Mapping[int, Indices]) -> dict[int, BatchSums]:
        """Return the sums of one batch of each trial, together where that can be."""
        found: dict[int, BatchSums] = {}
        parts = []
        for key, batch in due.items():
            if self._shares(key):
                rows = lay_out(self._dataset.validation_examples(batch))
                parts.append(EvalPart(key, rows))
            else:
                self.activate(key)
                found[key] = self._lone.measure(self._dataset.validation_batch(batch))
        if not parts:
            return found
        assert self._pack is not None
        outcomes = self._within_memory.run(parts, self._pack.measure)
        for part, outcome in zip(parts, outcomes, strict=True):
            if isinstance(outcome, Exception):
                raise outcome
            sums = outcome.result
            found[part.trial] = BatchSums(sums.loss, sums.num_correct, part.rows.num_targets)
        return found

    def _shares(self, key: int) -> bool:
        stacks = self._weights.stacks
        return self._pack is not None and stacks is not None and key in stacks

    def _train(self, parts: list[TrainPart]) -> list[float]:
        assert self._pack is not None
        self.num_tokens.append(sum(part.rows.width for part in parts))
        return self._pack.backward(parts)

    def _next_part(self, trial: Trial) -> TrainPart:
        """Return the next batch of a trial, of a new step if none is under way."""
        number = trial.step + 1
        if trial.key not in self._steps:
            batches = trial.order.micro_batches(number)
            self._steps[trial.key] = _Step(
                [lay_out(self._dataset.train_examples(rows)) for rows in batches]
            )
        step = self._steps[trial.key]
        index, seed = step.num_done, trial.options.seed
        return TrainPart(
            trial=trial.key,
            rows=step.batches[index],
            weight=trial.loss_scale / step.num_targets,
            dropout_seed=derive_seed(seed, "dropout", number, index),
            noise_alpha=trial.options.neftune_noise_alpha,
            noise_seed=derive_seed(seed, "neftune", number, index),
            is_first=index == 0,
        )

    def _count(self, part: TrainPart, outcome: Done[float] | Exception) -> StepOutcome | None:
        """Add a pass to its step; return what comes of the step, None if it goes on."""
        if isinstance(outcome, Exception):
            return _failure(outcome)
        step = self._steps[part.trial]
        step.num_done += 1
        step.loss += outcome.result
        step.seconds += outcome.seconds
        if step.num_done < len(step.batches):
            return None
        num_tokens = sum(rows.num_tokens for rows in step.batches)
        loss = step.loss / step.num_targets
        return StepLoss(loss, num_tokens, step.seconds, outcome.num_parts)

    def _lone_step(self, trial: Trial) -> StepLoss:
        """Do all batches of a step of a trial that shares no pass."""
        start = time.perf_counter()
        micro_batches = trial.order.micro_batches(trial.step + 1)
        batches = [self._dataset.train_batch(rows) for rows in micro_batches]
        num_targets = sum(batch.num_targets for batch in batches)
        self.num_tokens += [batch.input_ids.numel() for batch in batches]
        self.activate(trial.key)
        losses = [
            self._lone.backward(trial, batch, num_targets, index)
            for index, batch in enumerate(batches)
        ]
        num_tokens = sum(batch.num_tokens for batch in batches)
        seconds = time.perf_counter() - start
        return StepLoss(sum(losses) / num_targets, num_tokens, seconds, 1)


def describe(error: Exception) -> str:
    """Return an error in one line, with its traceback below."""
    lines = traceback.format_exception(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}\n{''.join(lines)}"


def _failure(error: Exception) -> PassFailed | PassOutOfMemory:
    if is_out_of_memory(error):
        return PassOutOfMemory(" ".join(str(error).split()))
    return PassFailed(describe(error))
