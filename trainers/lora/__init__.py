"""LoRA fine-tuning of causal language models: several trials on one frozen base model.

Importing this package loads no torch, so that options are checked fast; making a
``LoraTrainer`` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from trainers.lora.options import LoraOptions
from trainers.protocol import Capacity, Plan, Report, TrainerOptions

__all__ = ["LoraOptions", "LoraTrainer"]


class LoraTrainer:
    """Trains one LoRA adapter a trial, all on one base model. See ``trainers.protocol.Trainer``."""

    Options: ClassVar[type[TrainerOptions]] = LoraOptions

    def __init__(self, fixed: Mapping[str, object], device: str = "auto") -> None:
        # Imported here: torch, transformers and PEFT take six seconds in a cold process.
        from trainers.lora.late_compiling import import_bitsandbytes
        from trainers.lora.no_detection import import_losses

        import_losses()
        import_bitsandbytes()  # both before anything imports PEFT
        from trainers.lora.engine import Engine

        self._engine = Engine(LoraOptions.model_validate(dict(fixed)), device)

    def plan(self, options: Mapping[str, object]) -> Plan:
        return self._engine.plan(LoraOptions.model_validate(dict(options)))

    def add(
        self, trial: int, options: Mapping[str, object], resume_from: Path | None = None
    ) -> None:
        self._engine.add(trial, LoraOptions.model_validate(dict(options)), resume_from)

    def fits(self, options: Mapping[str, object]) -> bool:
        return self._engine.fits(LoraOptions.model_validate(dict(options)))

    def capacity(self, configs: Sequence[Mapping[str, object]]) -> Capacity:
        return self._engine.capacity([LoraOptions.model_validate(dict(c)) for c in configs])

    def advance(self) -> list[Report]:
        return self._engine.advance()

    def step(self, trial: int) -> int:
        return self._engine.step(trial)

    def remove(self, trial: int) -> None:
        self._engine.remove(trial)

    def save(self, trial: int, folder: Path) -> None:
        self._engine.save(trial, folder)

    def evaluate(
        self, options: Mapping[str, object], adapter: Path | None = None
    ) -> Mapping[str, float]:
        return self._engine.evaluate(LoraOptions.model_validate(dict(options)), adapter)

    @classmethod
    def merge(cls, options: Mapping[str, object], adapter: Path, folder: Path) -> None:
        from trainers.lora.model.merge import merge_adapter

        merge_adapter(LoraOptions.model_validate(dict(options)), adapter, folder)
