"""The Trainer with the validation loss that all tools are compared by."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from examples import IGNORE_INDEX, Example


class TokenMeanTrainer(Trainer):
    """A Trainer whose validation loss is the mean over all target tokens, not over batches."""

    _loss_sum = 0.0
    _num_targets = 0

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As the Trainer; sums up beside it."""
        loss, logits, labels = super().prediction_step(
            model, inputs, prediction_loss_only, ignore_keys
        )
        assert loss is not None, "the examples have labels"
        num_targets = int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
        self._loss_sum += float(loss) * num_targets
        self._num_targets += num_targets
        return loss, logits, labels

    def evaluation_loop(
        self,
        dataloader: DataLoader[Example],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As the Trainer, with the other mean."""
        self._loss_sum, self._num_targets = 0.0, 0
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        mean = self._loss_sum / self._num_targets
        return output._replace(
            metrics={**(output.metrics or {}), f"{metric_key_prefix}_loss": mean}
        )
