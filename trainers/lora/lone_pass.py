"""The pass of a trial that shares none: any model of transformers, any weights, as PEFT computes.

For trials that train more than a plain adapter, and for models that cannot take the rows of several
trials end to end. All others are in ``pack``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainers.lora.data.dataset import Batch
from trainers.lora.data.encoding import IGNORE_INDEX
from trainers.lora.model.base_model import BaseModel
from trainers.lora.model.modes import train
from trainers.lora.model.neftune import Noise, noisy_embeddings
from trainers.lora.seeds import derive_seed
from trainers.lora.trial import Trial
from trainers.lora.validation.results import BatchSums


class LonePass:
    """Takes the active trial through the base model."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base

    def backward(self, trial: Trial, batch: Batch, num_targets: int, index: int) -> float:
        """Add a batch's gradients to the weights of a trial; return its loss summed over targets.

        Args:
            trial: The active one.
            batch: Of its next step.
            num_targets: Of the whole step.
            index: Of the batch in the step.
        """
        seed, step = trial.options.seed, trial.step + 1
        train(self._base.model)
        noises = []
        if trial.options.neftune_noise_alpha:
            widths = (batch.input_ids.shape[1],) * batch.input_ids.shape[0]
            noise_seed = derive_seed(seed, "neftune", step, index)
            noises = [Noise(0, widths, trial.options.neftune_noise_alpha, noise_seed)]
        with self._random_stream(derive_seed(seed, "dropout", step, index)):
            with noisy_embeddings(self._base.model, noises):
                logits_NV, targets_N = self._logits_at_targets(batch)
            loss = _sum_loss(logits_NV, targets_N)
            # In the stream too: checkpointed layers draw their dropout again going back.
            (loss * (trial.loss_scale / num_targets)).backward()
        return loss.item()

    @torch.no_grad()  # not inference_mode: what layers cache here must be usable in training
    def measure(self, batch: Batch) -> BatchSums:
        """Return what a batch's targets add up to; the model evaluates already."""
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

    @contextlib.contextmanager
    def _random_stream(self, seed: int) -> Iterator[None]:
        """Let the global generators begin at ``seed``, and put them back afterwards."""
        devices = range(torch.cuda.device_count()) if self._base.device.type == "cuda" else ()
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(seed)
            yield


def _sum_loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return functional.cross_entropy(logits_NV.float(), targets_N, reduction="sum")
