"""Forward and backward passes: the gradients of a training step, and a validation's sums.

Today one trial after the other. Whoever calls this sees several trials go in and one outcome
for each come out, so that the inside can become one pass for all.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainers.lora.data.dataset import Batch, Dataset
from trainers.lora.data.encoding import IGNORE_INDEX
from trainers.lora.memory import is_out_of_memory
from trainers.lora.model.base_model import BaseModel
from trainers.lora.model.neftune import noisy_embeddings
from trainers.lora.model.weights import WeightPool
from trainers.lora.seeds import derive_seed
from trainers.lora.trial import Trial
from trainers.lora.validation.results import BatchSums


@dataclass(frozen=True)
class StepLoss:
    """What a training step measured before the optimizer acts on its gradients.

    Attributes:
        loss: Nats per target token over all passes of the step.
        num_tokens: Tokens that went through the model, without padding.
        seconds: How long this trial's passes took.
    """

    loss: float
    num_tokens: int
    seconds: float


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


class Passes:
    """Runs trials through the base model, each with its own adapter."""

    def __init__(self, base: BaseModel, weights: WeightPool, dataset: Dataset) -> None:
        self._base = base
        self._weights = weights
        self._dataset = dataset
        self.num_tokens: list[int] = []
        """Of each pass of the newest ``backward``, with padding."""

    def backward(self, trials: Sequence[Trial]) -> list[StepLoss | PassFailed | PassOutOfMemory]:
        """Leave in each trial's weights the gradient of its next step; return losses or errors."""
        self.num_tokens.clear()
        outcomes: list[StepLoss | PassFailed | PassOutOfMemory] = []
        for trial in trials:
            try:
                outcomes.append(self._backward_one(trial))
            except Exception as error:  # becomes this trial's report; the others go on
                if is_out_of_memory(error):
                    trial.optimizer.zero_grad()
                    outcomes.append(PassOutOfMemory(" ".join(str(error).split())))
                else:
                    outcomes.append(PassFailed(describe(error)))
        return outcomes

    def _backward_one(self, trial: Trial) -> StepLoss:
        start = time.perf_counter()
        step = trial.step + 1
        batches = [self._dataset.train_batch(rows) for rows in trial.order.micro_batches(step)]
        num_targets = sum(batch.num_targets for batch in batches)
        self._weights.activate(trial.key)
        self._base.model.train()
        loss = 0.0
        for index, batch in enumerate(batches):
            self.num_tokens.append(batch.input_ids.numel())
            with self._random_stream(derive_seed(trial.options.seed, "dropout", step, index)):
                with self._noise(trial, step, index):
                    logits_NV, targets_N = self._logits_at_targets(batch)
                batch_loss = _sum_loss(logits_NV, targets_N) / num_targets
                # In the stream too: checkpointed layers draw their dropout again going back.
                trial.backward(batch_loss)
            loss += batch_loss.item()
        num_tokens = sum(batch.num_tokens for batch in batches)
        return StepLoss(loss, num_tokens, time.perf_counter() - start)

    def activate(self, key: int) -> None:
        """Let the base model compute with this trial's adapter."""
        self._weights.activate(key)

    @torch.no_grad()  # not inference_mode: what layers cache here must be usable in training
    def measure(self, key: int, batches: Iterable[Batch]) -> list[BatchSums]:
        """Return the sums of each batch under a trial's adapter as it is now."""
        self.activate(key)
        with _evaluating(self._base.model):
            return [self._measure_one(batch) for batch in batches]

    def _measure_one(self, batch: Batch) -> BatchSums:
        logits_NV, targets_N = self._logits_at_targets(batch)
        num_correct = int((logits_NV.argmax(-1) == targets_N).sum())
        return BatchSums(_sum_loss(logits_NV, targets_N).item(), num_correct, batch.num_targets)

    def _logits_at_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits, shape (targets, vocabulary), and target ids, of the targets only.

        Projecting prompt tokens on the vocabulary costs up to a fifth of a small model's step.
        Models that select rows by a mask (nearly all in transformers) are spared it; from
        others the full logits are taken and selected here.
        """
        batch = batch.to(self._base.device)
        is_target = batch.targets != IGNORE_INDEX
        arguments: dict[str, Any] = {"use_cache": False}
        if self._base.selects_logits:
            arguments["logits_to_keep"] = is_target
        if batch.position_ids is None:
            arguments["attention_mask"] = batch.attention_mask
        else:  # from positions that begin again transformers masks examples of one row apart
            arguments["position_ids"] = batch.position_ids
        with self._base.autocast():
            output = self._base.model(input_ids=batch.input_ids, **arguments)
        logits: Tensor = output.logits
        if logits.ndim == 3:
            logits = logits[is_target.to(logits.device)]
        targets = batch.targets[is_target].to(logits.device)
        assert logits.shape[0] == targets.shape[0]
        return logits, targets

    def _noise(
        self, trial: Trial, step: int, index: int
    ) -> contextlib.AbstractContextManager[None]:
        seed = derive_seed(trial.options.seed, "neftune", step, index)
        return noisy_embeddings(self._base.model, trial.options.neftune_noise_alpha, seed)

    @contextlib.contextmanager
    def _random_stream(self, seed: int) -> Iterator[None]:
        """Let the global generators begin at ``seed``, and put them back afterwards."""
        devices = range(torch.cuda.device_count()) if self._base.device.type == "cuda" else ()
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(seed)
            yield


def describe(error: Exception) -> str:
    """Return an error in one line, with its traceback below."""
    lines = traceback.format_exception(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}\n{''.join(lines)}"


def _sum_loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return functional.cross_entropy(logits_NV.float(), targets_N, reduction="sum")


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
