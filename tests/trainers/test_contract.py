"""The contract of a trainer, kept by ours and by the one that the other tests use."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.fake_trainer import FakeTrainer
from tests.trainers.contract import Options, TrainerContract
from trainers.lora import LoraTrainer
from trainers.protocol import Trainer


class TestLoraTrainer(TrainerContract):
    @pytest.fixture
    def trainer(self, fixed: Options) -> Trainer:
        return LoraTrainer(fixed, "cpu")

    @pytest.fixture
    def options(self, fixed: Options) -> list[Options]:
        short = {**fixed, "max_steps": 4, "eval_steps": 2, "learning_rate": 3e-3}
        return [{**short, "lora_dropout": 0.1}, {**short, "seed": 7, "lora_r": 4}]

    def test_merged_weights_give_the_adapters_loss(
        self, trainer: LoraTrainer, options: list[Options], tmp_path: Path
    ) -> None:
        trainer.add(0, options[0])
        loss = self.losses(self.train(trainer, 0))[-1]
        trainer.save(0, tmp_path / "saved")
        trainer.merge(options[0], tmp_path / "saved" / "adapter", tmp_path / "merged")
        merged = {**options[0], "model_name_or_path": str(tmp_path / "merged")}
        assert math.isclose(
            LoraTrainer(merged, "cpu").evaluate(merged)["eval_loss"], loss, rel_tol=1e-5
        )


class TestFakeTrainer(TrainerContract):
    @pytest.fixture
    def trainer(self) -> Trainer:
        return FakeTrainer({}, "cpu")

    @pytest.fixture
    def options(self) -> list[Options]:
        return [{"max_steps": 4, "eval_steps": 2, "x": x} for x in (0.5, -0.5)]

    def is_same_value(self, evaluated: float, reported: float) -> bool:
        return evaluated < reported  # its reports add what falls with the steps
