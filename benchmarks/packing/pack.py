"""Our engine with the trials of a case: its passes called one by one, or whole steps.

The only place here that reaches below ``trainers.lora.LoraTrainer``: a benchmark of the passes has
to leave out what comes after them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.packing.cases import Case, write_rows
from benchmarks.packing.rows import Rows
from trainers.lora.engine import Engine
from trainers.lora.model.base_model import load_tokenizer
from trainers.lora.options import LoraOptions
from trainers.lora.passes import StepLoss
from trainers.lora.trial import Trial


class Pack:
    """The trials of a case on one engine."""

    def __init__(self, model: str, case: Case, text: str, dtype: str = "bfloat16") -> None:
        """Load the base model, write and read the data, and add the trials.

        Args:
            model: Folder of the base model.
            case: What the trials are.
            text: What their rows are cut from.
            dtype: Of the base model.
        """
        with tempfile.TemporaryDirectory() as folder:
            fixed = self._fixed(model, case, text, dtype, Path(folder))
            self._engine = Engine(LoraOptions.model_validate(fixed), "cpu")
        lengths = set(self._engine._dataset.train_lengths)
        assert lengths == {case.num_tokens}, f"rows of {lengths} tokens, not {case.num_tokens}"
        for trial in range(case.num_trials):
            rank = case.rank(trial)
            own = {"lora_r": rank, "lora_alpha": 2 * rank, "seed": trial}
            self._engine.add(trial, LoraOptions.model_validate({**fixed, **own}), None)

    @property
    def rows(self) -> list[Rows]:
        """The rows of each trial's next step, for the other contestants."""
        return [self._rows_of(trial) for trial in self._trials]

    def packed(self) -> float:
        """Do one pass for all trials together; return the seconds."""
        return self._backward(self._trials)

    def alone(self) -> float:
        """Do the same passes trial by trial; return the seconds."""
        return sum(self._backward([trial]) for trial in self._trials)

    def advance(self) -> None:
        """Take one whole step of every trial, optimizers and all."""
        reports = self._engine.advance()
        assert not reports, f"a trial ended: {reports}"

    def difference_to_alone(self) -> tuple[float, float]:
        """Return by how much the next step differs from that of the same trials alone.

        Returns:
            The largest relative difference of a trial's loss, and that of its gradient (the norm
            of the difference, by the norm).
        """
        together = self._losses_and_gradients([self._trials])
        alone = self._losses_and_gradients([[trial] for trial in self._trials])
        losses, gradients = [], []
        for (loss, gradient), (own_loss, own_gradient) in zip(together, alone, strict=True):
            losses.append(abs(loss - own_loss) / abs(own_loss))
            gradients.append(((gradient - own_gradient).norm() / own_gradient.norm()).item())
        return max(losses), max(gradients)

    def touch_base(self) -> None:
        """Read every weight of the base model: a page that is never read is not in memory."""
        for weight in self._engine._base.model.parameters():
            weight.sum()

    @property
    def _trials(self) -> list[Trial]:
        return list(self._engine._trials.values())

    def _losses_and_gradients(self, packs: Sequence[Sequence[Trial]]) -> list[tuple[float, Tensor]]:
        """Return each trial's loss and whole gradient, of passes through one pack after another."""
        found = []
        for trials in packs:
            for trial, outcome in zip(trials, self._engine._passes.backward(trials), strict=True):
                assert isinstance(outcome, StepLoss), f"a pass failed: {outcome}"
                grads = [weight.grad for weight in trial.parameters.values()]
                parts = [grad.flatten().clone() for grad in grads if grad is not None]
                found.append((outcome.loss, torch.cat(parts)))
                trial.optimizer.zero_grad()
        return found

    def _backward(self, trials: Sequence[Trial]) -> float:
        start = time.perf_counter()
        outcomes = self._engine._passes.backward(trials)
        seconds = time.perf_counter() - start
        for trial, outcome in zip(trials, outcomes, strict=True):
            assert isinstance(outcome, StepLoss), f"a pass failed: {outcome}"
            trial.optimizer.zero_grad()
        return seconds

    def _rows_of(self, trial: Trial) -> Rows:
        (indices,) = trial.order.micro_batches(trial.step + 1)
        examples = [self._engine._dataset.train[index] for index in indices]
        input_ids = torch.stack([example.input_ids for example in examples]).long()
        labels = torch.stack([example.labels for example in examples]).long()
        return Rows(input_ids, torch.ones_like(input_ids), labels)

    def _fixed(
        self, model: str, case: Case, text: str, dtype: str, folder: Path
    ) -> dict[str, object]:
        fixed: dict[str, object] = {
            "model_name_or_path": model,
            "dtype": dtype,
            "dataset_prepared_path": str(folder / "tokenized"),
            "per_device_train_batch_size": case.num_rows,
            "max_steps": 1000,
            "eval_strategy": "no",
        }
        if case.quantized:
            fixed |= {"quantization_bit": 4, "quantization_type": "nf4"}
        # The rows need the tokenizer, which needs whole options: the file's name will do for it.
        named = {**fixed, "train_file": str(folder / "rows.jsonl")}
        tokenizer = load_tokenizer(LoraOptions.model_validate(named))
        return {**fixed, **write_rows(folder / "rows.jsonl", tokenizer, case, text)}
