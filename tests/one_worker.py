"""Runs a study with one worker and no Ray: the same study, trainer and checkpoints, one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpo.errors import ExhaustedError
from hpo.lookup import find_trainer
from hpo.spec import StudySpec
from hpo.studies import StudyRecord, create_study, open_study
from hpo.study import Study
from trainers.protocol import Report

SPACE = {
    "x": {"type": "float", "low": -1.0, "high": 1.0},
    "y": {"type": "int", "low": 1, "high": 4},
    "kind": {"type": "categorical", "choices": ["a", "b"]},
}


def make_spec(tmp_path: Path, **changes: object) -> StudySpec:
    document = {
        "study": "s",
        "trainer": "tests.fake_trainer:FakeTrainer",
        "output_dir": str(tmp_path / "runs"),
        "fixed": {"max_steps": 9},
        "space": SPACE,
        **changes,
    }
    return StudySpec.model_validate(document)


def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'hpo.db'}"


def start(spec: StudySpec, url: str) -> StudyRecord:
    return create_study(spec, url)


def again(spec: StudySpec, url: str) -> StudyRecord:
    return open_study(spec.study, url)


@dataclass
class Worker:
    """Trains the study's trials one after the other, as a host and its proxies would.

    Attributes:
        study: Held by this worker.
        pauses: Trial -> step at which it is saved and handed back, unless it went on from there.
        tears: Trial -> step whose checkpoint is torn behind its writer's back on the first stay; the
            trial is handed back before the report has left.
        trained: (trial, step) of every report.
    """

    study: Study
    pauses: Mapping[int, int] = field(default_factory=dict)
    tears: Mapping[int, int] = field(default_factory=dict)
    trained: list[tuple[int, int]] = field(default_factory=list)

    def work(self) -> str:
        """Train until the study is exhausted; return why it is."""
        while True:
            try:
                claim = self.study.next_trial()
            except ExhaustedError as error:
                self.study.close()
                return str(error)
            assert claim is not None
            self.train(claim.number, claim.config, adopted=claim.adopted)

    def train(self, number: int, config: dict[str, object], *, adopted: bool = False) -> None:
        """Train one trial until it is over, or is handed back."""
        trainer = find_trainer(self.study.spec.trainer)(self.study.spec.fixed, "cpu")
        checkpoint = self.study.store.newest(number)
        history: list[Report] = list(checkpoint.history) if checkpoint else []
        trainer.add(number, config, checkpoint.folder if checkpoint else None)
        pause = self.pauses.get(number, 0)
        if checkpoint is not None and checkpoint.step >= pause:
            pause = 0

        def save(is_validation: bool) -> None:
            step = trainer.step(number)
            write = self.study.store.write
            write(number, step, history, is_validation, lambda to: trainer.save(number, to))

        while True:
            for report in trainer.advance():
                self.trained.append((number, report.step))
                if report.metrics:
                    history.append(report)
                    save(is_validation=True)
                    if not adopted and self.tears.get(number) == report.step:
                        torn = self.study.store.at_step(number, report.step)
                        (torn.adapter / "weight.json").write_text("")
                        self.study.release(number)
                        return
                if self.study.report(number, report):
                    return
            if pause and trainer.step(number) == pause:
                save(is_validation=False)
                self.study.release(number)
                return


def picture(record: StudyRecord) -> list[tuple[object, ...]]:
    """Return all that a study says of its trials, to be compared."""
    return [
        (t.number, t.state, t.value, t.best_step, t.params, t.config, t.reports, t.reason)
        for t in record.trials()
    ]
