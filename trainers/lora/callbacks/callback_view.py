"""What a trial's callbacks are shown: its training arguments, and its adapter, to read only."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from trainers.lora.options import LoraOptions

_SCRATCH = "not-written"
"""``output_dir``, which the arguments must have: nothing is written there."""

_READABLE = ("named_parameters()", "parameters()", "state_dict()", "config", "device", "training")


class TrialArguments(TrainingArguments):
    """A trial's options as transformers' arguments, without what those do to the process.

    transformers' own look for devices and begin accelerate's state, which is one for the whole
    process and would be reset for each trial.
    """

    distributed_state = None
    _n_gpu = 1
    _trial_device = torch.device("cpu")

    @property
    def _setup_devices(self) -> torch.device:
        return self._trial_device


def training_arguments(
    options: LoraOptions, device: torch.device, dtype: torch.dtype | None
) -> TrialArguments:
    """Return a trial's options under the names that they have in transformers' arguments.

    A checkpoint belongs to every validation, so they share strategy and steps.
    """
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    given = options.model_dump(include=names & set(type(options).model_fields))
    given["activation_checkpointing"] = given.pop("gradient_checkpointing")
    given |= {
        "output_dir": _SCRATCH,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device.type == "cpu",
        "save_strategy": given["eval_strategy"],
        "save_steps": given["eval_steps"],
        "metric_for_best_model": options.best_metric,
        "greater_is_better": options.is_greater_better(options.best_metric),
    }
    arguments = TrialArguments(**{name: given[name] for name in given if name in names})
    arguments._trial_device, arguments._n_gpu = device, int(device.type != "cpu")
    # Not as arguments: those are refused where the device only emulates the type.
    arguments.bf16, arguments.fp16 = dtype == torch.bfloat16, dtype == torch.float16
    return arguments


class AdapterView:
    """A trial's adapter as a callback may see it: copies, made when they are asked for.

    Holds nothing through which the base model or another trial's adapter could be reached.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], config: Any, device: torch.device
    ) -> None:
        self.__parameters = parameters
        self.config = copy.deepcopy(config)
        self.device = device
        self.training = True

    def named_parameters(self, *_: object, **__: object) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield copies of the adapter's weights, with copies of their gradients if they have any."""
        for name, parameter in self.__parameters.items():
            seen = nn.Parameter(parameter.detach().clone())
            if parameter.grad is not None:
                seen.grad = parameter.grad.detach().clone()
            yield name, seen

    def parameters(self, *_: object, **__: object) -> Iterator[nn.Parameter]:
        for _name, parameter in self.named_parameters():
            yield parameter

    def state_dict(self, *_: object, **__: object) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.__parameters.items()}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a callback's model has no {name!r}: other trials train on the same model, so a callback "
            f"sees its own trial's adapter only. It may read {', '.join(_READABLE)}."
        )
