"""Validates snapshots beside training, in one thread: on a second device, or on spare cores.

The copy of the model has adapters of its own; on spare cores it shares the frozen weights. The thread
must not draw from PyTorch's global random generators, which training seeds and puts back.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trainers.lora.model.adapters import AdapterPool, load_weights
from trainers.lora.model.base_model import BaseModel, load_base_model
from trainers.lora.model.weights import Parameters
from trainers.lora.options import LoraOptions
from trainers.lora.validation.eval_sets import EvalPart
from trainers.lora.validation.results import Measured, Results
from trainers.lora.validation.validator import Validator

IN_TURN = (
    "eval_async: there is no second device and no spare core (torch uses all that this process may "
    "use): trials wait for their validations"
)


class SideValidator:
    """Validates one snapshot after the other, while training goes on."""

    def __init__(self, validator: Validator, adapters: AdapterPool) -> None:
        """Start with no adapter.

        Args:
            validator: Made on the copy of the base model.
            adapters: On the same copy.
        """
        self._validator = validator
        self._adapters = adapters
        self._parameters: dict[int, Parameters] = {}
        self._model_in_use = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="validate")

    def add(self, key: int, options: LoraOptions) -> None:
        """Make room for a trial's snapshots; waits for a validation that is under way."""
        with self._model_in_use:
            self._parameters[key] = self._adapters.add(key, options)

    def remove(self, key: int) -> None:
        """Forget a trial. None of its validations may be under way."""
        with self._model_in_use:
            del self._parameters[key]
            self._adapters.remove(key)

    def submit(
        self, key: int, weights: dict[str, Tensor], parts: Sequence[EvalPart], max_loss: float
    ) -> Future[Measured]:
        """Begin to validate these weights of a trial."""
        return self._pool.submit(self._validate, key, weights, parts, max_loss)

    def _validate(
        self, key: int, weights: dict[str, Tensor], parts: Sequence[EvalPart], max_loss: float
    ) -> Measured:
        with self._model_in_use:
            load_weights(self._parameters[key], weights)
            return self._validator.validate(key, parts, Results(), max_loss)


def drop(future: Future[Measured]) -> None:
    """Cancel a validation that has not begun; wait for one that has."""
    if not future.cancel():
        wait([future])


def side_model(base: BaseModel, options: LoraOptions) -> BaseModel | None:
    """Return a copy of a base model that has no adapters yet, to validate beside it.

    None if there is neither a second device nor a spare core.
    """
    if base.device.type == "cuda":
        device = _second_device(base)
        return None if device is None else load_base_model(options, device)
    if _num_cores() <= torch.get_num_threads():
        return None
    return replace(base, model=_sharing_copy(base.model))


def _second_device(base: BaseModel) -> str | None:
    used = {parameter.device for parameter in base.model.parameters()}
    free = [i for i in range(torch.cuda.device_count()) if torch.device("cuda", i) not in used]
    return f"cuda:{free[0]}" if free else None


def _num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _sharing_copy(model: Any) -> Any:
    """Return a copy of a model's modules around the same weights."""
    shared = [*model.parameters(), *model.buffers()]
    # What 4-bit layers keep beside their weights.
    shared += [m.quant_state for m in model.modules() if getattr(m, "quant_state", None)]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
