"""What every trainer must do. A trainer's tests subclass `TrainerContract` and give it a trainer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainers.protocol import ADAPTER_FOLDER, STATE_FOLDER, Report, Trainer

Options = dict[str, object]


class TrainerContract:
    """Subclasses override `trainer` and `options`; trials take 4 steps and validate twice."""

    metric = "eval_loss"

    @pytest.fixture
    def trainer(self) -> Trainer:
        raise NotImplementedError

    @pytest.fixture
    def options(self) -> list[Options]:
        """Return two whole configs that differ."""
        raise NotImplementedError

    def train(self, trainer: Trainer, trial: int) -> list[Report]:
        """Advance until a trial ends; return its reports."""
        reports: list[Report] = []
        for _ in range(50):
            reports += [report for report in trainer.advance() if report.trial == trial]
            if reports and reports[-1].end is not None:
                return reports
        raise AssertionError("the trial never ends")

    def losses(self, reports: list[Report]) -> list[float]:
        return [report.metrics[self.metric] for report in reports if report.metrics]

    def test_the_plan_says_what_happens(self, trainer: Trainer, options: list[Options]) -> None:
        plan = trainer.plan(options[0])
        trainer.add(0, options[0])
        reports = self.train(trainer, 0)
        assert reports[-1].end == "finished"
        assert reports[-1].step == trainer.step(0) == plan.num_steps
        assert [r.validation for r in reports] == list(range(1, plan.num_validations + 1))

    def test_neighbours_change_nothing(self, trainer: Trainer, options: list[Options]) -> None:
        trainer.add(0, options[0])
        alone = self.losses(self.train(trainer, 0))
        trainer.remove(0)
        trainer.add(1, options[1])
        trainer.advance()
        trainer.add(0, options[0])
        assert self.losses(self.train(trainer, 0)) == alone

    def test_a_saved_trial_goes_on_as_if_nothing_had_happened(
        self, trainer: Trainer, options: list[Options], tmp_path: Path
    ) -> None:
        trainer.add(0, options[0])
        whole = self.losses(self.train(trainer, 0))
        trainer.remove(0)
        trainer.add(0, options[0])
        begun: list[Report] = []
        while not begun:
            begun = trainer.advance()
        trainer.save(0, tmp_path)
        step = trainer.step(0)
        trainer.remove(0)
        trainer.add(0, options[0], tmp_path)
        assert trainer.step(0) == step
        assert self.losses([*begun, *self.train(trainer, 0)]) == whole

    def test_alone_any_trial_fits(self, trainer: Trainer, options: list[Options]) -> None:
        for config in options:
            assert trainer.fits(config)

    def test_measuring_the_capacity_leaves_no_trace(
        self, trainer: Trainer, options: list[Options]
    ) -> None:
        trainer.add(0, options[0])
        losses = self.losses(self.train(trainer, 0))
        with pytest.raises(ValueError, match=r"(?i)present"):
            trainer.capacity(options)
        trainer.remove(0)
        assert trainer.capacity(options).num_trials >= 1
        trainer.add(0, options[0])
        assert self.losses(self.train(trainer, 0)) == losses

    def test_what_is_saved_is_no_pickle_and_has_both_parts(
        self, trainer: Trainer, options: list[Options], tmp_path: Path
    ) -> None:
        trainer.add(0, options[0])
        trainer.advance()
        trainer.save(0, tmp_path)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {path.relative_to(tmp_path).parts[0] for path in files} == {
            ADAPTER_FOLDER,
            STATE_FOLDER,
        }
        assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".txt"}

    def test_an_unknown_trial_cannot_leave(self, trainer: Trainer) -> None:
        with pytest.raises(KeyError):
            trainer.remove(9)

    def test_a_saved_adapter_is_validated_to_the_reported_value(
        self, trainer: Trainer, options: list[Options], tmp_path: Path
    ) -> None:
        trainer.add(0, options[0])
        reports = self.train(trainer, 0)
        trainer.save(0, tmp_path)
        untuned = trainer.evaluate(options[0])[self.metric]
        tuned = trainer.evaluate(options[0], tmp_path / ADAPTER_FOLDER)[self.metric]
        assert self.is_same_value(tuned, reports[-1].metrics[self.metric])
        assert tuned != untuned

    def is_same_value(self, evaluated: float, reported: float) -> bool:
        return evaluated == reported

    def test_an_adapter_becomes_full_weights(
        self, trainer: Trainer, options: list[Options], tmp_path: Path
    ) -> None:
        (tmp_path / "saved").mkdir()
        trainer.add(0, options[0])
        trainer.advance()
        trainer.save(0, tmp_path / "saved")
        trainer.merge(options[0], tmp_path / "saved" / ADAPTER_FOLDER, tmp_path / "merged")
        assert any((tmp_path / "merged").iterdir())

    def test_reports_are_plain_enough_for_json(
        self, trainer: Trainer, options: list[Options]
    ) -> None:
        trainer.add(0, options[0])
        for report in self.train(trainer, 0):
            said: Mapping[str, object] = {"metrics": dict(report.metrics)}
            json.dumps([said, list(map(dict, report.step_lines))])
