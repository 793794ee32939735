"""Trains one config without a search, through the same trainer and the same checkpoints."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from hpo import trial_log
from hpo.checkpoints import CheckpointStore
from hpo.config_file import ConfigFile
from hpo.errors import StudyError, TrainerError
from hpo.lookup import find_trainer, option_defaults
from hpo.proposals import config_digest
from hpo.result import config_yaml, versions
from hpo.trackers import check_installed, chosen
from hpo.trackers.outlet import Outlets
from hpo.trackers.tracker import Ending
from trainers.protocol import ADAPTER_FOLDER, Report, Trainer

NUMBER = 0


class InterruptedTrainingError(Exception):
    """Training was asked to stop, and is saved."""


def train_config(
    file: ConfigFile, say: Callable[[str], None], is_stopping: Callable[[], bool] = lambda: False
) -> dict[str, object]:
    """Train one config to its end, from its newest checkpoint if there is one.

    Args:
        file: The config. Its output folder gets ``adapter/`` (of the best validation),
            ``config.yaml``, the checkpoints, and what trackers write.
        say: Told of each validation, of what the trainer notes, and of trackers.
        is_stopping: Asked after each step; then the training is saved and left.

    Returns:
        Step and metrics of the best validation, and where the adapter lies.

    Raises:
        TrainerError: The model or the data is wrong, or training failed.
        StudyError: The folder holds checkpoints of another config.
        InterruptedTrainingError: It was asked to stop, and did.
    """
    check_installed(file.report_to)
    store = CheckpointStore(file.output_dir / f"checkpoints-{config_digest(file.config)[:8]}")
    others = [path for path in file.output_dir.glob("checkpoints-*") if path != store.root]
    if others:
        raise StudyError(
            f"{file.output_dir} holds the checkpoints of another config ({others[0].name}). Give "
            f"another --output-dir, or delete them."
        )
    try:
        trainer = find_trainer(file.trainer)(file.config, "auto")
        found = store.newest(NUMBER)
        history = list(found.history) if found else []
        if found:
            say(f"going on from step {found.step}")
        if not (history and history[-1].end):
            trainer.add(NUMBER, file.config, found.folder if found else None)
    except ValueError as error:
        raise TrainerError(str(error)) from error
    outlets = Outlets(
        chosen(file.report_to),
        file.output_dir,
        file.output_dir.name,
        file.metric,
        file.run_name,
        option_defaults(type(trainer).Options),
    )
    run = _Run(file, store, trainer, history, outlets, say)
    try:
        run.train(is_stopping)
    finally:
        _say_all(say, outlets.close())
    return _hand_over(store, history, file)


@dataclass
class _Run:
    """One training: its reports are logged, saved and told of as they come."""

    file: ConfigFile
    store: CheckpointStore
    trainer: Trainer
    history: list[Report]
    outlets: Outlets
    say: Callable[[str], None]

    @property
    def is_over(self) -> bool:
        return bool(self.history) and self.history[-1].end is not None

    def train(self, is_stopping: Callable[[], bool]) -> None:
        self._tell(self.history[-1] if self.is_over else None)
        while not self.is_over:
            for report in self.trainer.advance():
                self._take(report)
            _say_all(self.say, self.outlets.heard())
            if is_stopping() and not self.is_over:
                _save(self.store, self.trainer, self.history, is_validation=False)
                raise InterruptedTrainingError

    def _take(self, report: Report) -> None:
        trial_log.append(self.store.trial_folder(NUMBER), report, report.end or "goes on")
        known = {note for earlier in self.history for note in earlier.notes}
        _say_all(self.say, [f"note: {note}" for note in report.notes if note not in known])
        if report.end in ("failed", "diverged", "out_of_memory"):
            self._tell(report)
            end = "ran out of memory" if report.end == "out_of_memory" else report.end
            raise TrainerError(f"training {end} at step {report.step}: {report.message}")
        self.history.append(replace(report, step_lines=(), samples=()))
        _save(self.store, self.trainer, self.history, is_validation=True)
        steps = self.store.steps(NUMBER)
        best = _best(self.history, self.file)
        self.store.delete(NUMBER, keep={*steps[-2:], best.step})
        self.say(_spoken(report))
        self._tell(report)

    def _tell(self, report: Report | None) -> None:
        """Tell the trackers of a report, or that the training begins."""
        ending = None
        if report is not None and report.end is not None:
            metric = self.file.metric
            best = None
            if self.history and metric is not None:
                best = _best(self.history, self.file).metrics[metric]
            is_good = report.end in ("finished", "stopped_early")
            state = "COMPLETE" if is_good else "FAIL"
            ending = Ending(state, report.end, report.message, best)
        folder = self.store.trial_folder(NUMBER)
        self.outlets.tell(NUMBER, self.file.config, folder, ending)


def _say_all(say: Callable[[str], None], texts: Iterable[str]) -> None:
    for text in texts:
        say(text)


def _save(
    store: CheckpointStore, trainer: Trainer, history: list[Report], *, is_validation: bool
) -> None:
    step = trainer.step(NUMBER)
    store.write(NUMBER, step, history, is_validation, lambda folder: trainer.save(NUMBER, folder))


def _best(history: list[Report], file: ConfigFile) -> Report:
    """Return the report whose weights are handed over."""
    if file.metric is None:
        return history[-1]
    missing = [report for report in history if file.metric not in report.metrics]
    if missing:
        raise TrainerError(
            f"the trainer reports no metric {file.metric!r}. It reports: "
            f"{', '.join(sorted(missing[0].metrics))}. Name one of these as 'metric:'."
        )
    metric = file.metric

    def badness(report: Report) -> float:
        value = report.metrics[metric]
        return math.inf if math.isnan(value) else file.sign * value  # min() would keep a first NaN

    return min(history, key=badness)


def _hand_over(
    store: CheckpointStore, history: list[Report], file: ConfigFile
) -> dict[str, object]:
    best = _best(history, file)
    adapter = file.output_dir / ADAPTER_FOLDER
    shutil.rmtree(adapter, ignore_errors=True)
    shutil.copytree(store.at_step(NUMBER, best.step).adapter, adapter)
    head: dict[str, object] = {"trainer": file.trainer, "output_dir": "."}
    if file.metric is not None:
        direction = "minimize" if file.sign > 0 else "maximize"
        head |= {"metric": file.metric, "direction": direction}
    text = config_yaml({**head, **file.config}, f"Trained with {versions()}")
    (file.output_dir / "config.yaml").write_text(text, encoding="utf-8")
    return {"step": best.step, "metrics": dict(best.metrics), "adapter": str(adapter)}


def _spoken(report: Report) -> str:
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in report.metrics.items())
    return f"step {report.step}: {metrics}"
