"""The bound: the frozen base model's own forward and backward pass, without any adapter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.packing.rows import Rows, stack


class BasePass:
    """Passes through a base model that trains nothing."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._model.requires_grad_(False)
        self._model.train()

    def in_turn(self, batches: Sequence[Rows]) -> float:
        """Do one pass for each trial's rows; return the seconds."""
        return sum(self._run(rows) for rows in batches)

    def packed(self, batches: Sequence[Rows]) -> float:
        """Do one pass for the rows of all trials; return the seconds."""
        return self._run(stack(batches))

    def _run(self, rows: Rows) -> float:
        start = time.perf_counter()
        # The gradient of the embeddings, so that the pass back goes through every layer.
        embedded = self._model.get_input_embeddings()(rows.input_ids).requires_grad_()
        output = self._model(
            inputs_embeds=embedded, attention_mask=rows.attention_mask, labels=rows.labels
        )
        output.loss.backward()
        return time.perf_counter() - start
