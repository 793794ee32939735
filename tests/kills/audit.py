"""Looks for what kills have cost a study: reads the database, the disk and the trainer's journal only."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from hpo import trial_log
from hpo.checkpoints import CheckpointStore
from hpo.errors import CheckpointError
from hpo.proposals import config_digest
from hpo.result import TRIAL_FILE
from hpo.storage.leases import LEASES
from hpo.storage.stored_trials import REPORTS, TRIALS
from hpo.studies import StudyRecord, TrialRecord, best_of, open_study
from tests.one_worker import picture
from trainers.protocol import ADAPTER_FOLDER

WELL = frozenset({"finished", "pruned"})


@contextlib.contextmanager
def opened(study: str, url: str) -> Iterator[StudyRecord]:
    """Open a study, and close its database behind."""
    record = open_study(study, url)
    try:
        yield record
    finally:
        record.database.close()


@dataclass
class Findings:
    """What is wrong, each in one line.

    Attributes:
        lost: Trials, reports, steps or files that should be there.
        zombies: What nobody works on, and is not over: rows, leases, files of dead writers.
        duplicates: What is there twice.
    """

    lost: list[str] = field(default_factory=list)
    zombies: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[str]:
        """Everything, to be compared with nothing."""
        return [*self.lost, *self.zombies, *self.duplicates]


class Journal:
    """What the fake trainer says it trained, against what was saved when a process was killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_lines = 0
        self._saved: dict[int, int | None] = {}
        self.trained_again: list[str] = []

    def note_kill(self, runs: Path, record: StudyRecord) -> None:
        """Check what was trained since the last kill, and remember what is durable now."""
        store = CheckpointStore(runs)
        ended = {t.number for t in record.trials() if t.state not in ("RUNNING", "WAITING")}
        saved: dict[int, int | None] = dict.fromkeys(ended)
        for number in set(store.trials()) - ended:
            checkpoint = store.newest(number)
            saved[number] = checkpoint.step if checkpoint is not None else 0
        self.check()
        self._saved = saved

    def check(self) -> None:
        """Find the steps since the last kill that a durable checkpoint had.

        A trial that was over is not to be begun again. (It may train on for some steps where it is:
        nobody waits for a verdict.)
        """
        lines = self.lines()
        for line in lines[self._num_lines :]:
            number, step, what = line["trial"], line["step"], line["what"]
            saved = self._saved.get(int(str(number)), 0)
            if saved is None and what == "add":
                self.trained_again.append(f"trial {number} had ended and was begun again")
            if saved is not None and what == "step" and int(str(step)) <= saved:
                self.trained_again.append(f"trial {number} had saved {saved}: {step} trained again")
        self._num_lines = len(lines)

    def lines(self) -> list[dict[str, object]]:
        """Return all that was noted; a torn line is passed over."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for text in self._path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(text))
        return found


def audit(
    record: StudyRecord, runs: Path, num_trials: int, ends: Collection[str] = WELL
) -> Findings:
    """Return what is wrong with a study that was let end.

    Args:
        record: The study.
        runs: Its folder.
        num_trials: What it was asked for.
        ends: How its trials may end: a loss of a process is never a trial's own fault.
    """
    found = Findings()
    trials = record.trials()
    numbers = Counter(trial.number for trial in trials)
    found.lost += [f"trial {n} is missing" for n in range(num_trials) if n not in numbers]
    found.duplicates += [f"trial {n} is there {k} times" for n, k in numbers.items() if k > 1]
    found.duplicates += [f"trial {n} was not asked for" for n in numbers if n >= num_trials]
    digests = Counter(config_digest(trial.config) for trial in trials)
    found.duplicates += [f"a config is there {k} times" for k in digests.values() if k > 1]
    for trial in trials:
        if trial.state in ("RUNNING", "WAITING"):
            found.zombies.append(f"trial {trial.number} is {trial.state}")
        elif trial.reason not in ends:
            found.lost.append(f"trial {trial.number} is {trial.reason}: {trial.message}")
        _audit_reports(trial, found)
        _audit_log(trial, runs, found)
    _audit_rows(record, found)
    _audit_files(record, trials, runs, found)
    return found


def _audit_reports(trial: TrialRecord, found: Findings) -> None:
    said = f"trial {trial.number} ({trial.reason})"
    if list(trial.reports) != list(range(1, len(trial.reports) + 1)):
        found.lost.append(f"{said} has the reports {list(trial.reports)}")
    every, last = int(trial.config.get("eval_steps", 1)), int(trial.config["max_steps"])
    for validation, report in trial.reports.items():
        if report.get("step") != min(validation * every, last) or "metrics" not in report:
            found.lost.append(f"{said} says at validation {validation}: {report}")
    if trial.reason == "finished" and trial.step != last:
        found.lost.append(f"{said} ended at step {trial.step} of {last}")


def _audit_log(trial: TrialRecord, runs: Path, found: Findings) -> None:
    lines = trial_log.read(runs / str(trial.number))
    there = Counter(line["validation"] for line in lines if line["kind"] == "validation")
    said = f"of trial {trial.number} ({trial.reason})"
    found.lost += [f"no line {said} for validation {n}" for n in trial.reports if n not in there]
    found.duplicates += [f"validation {n} {said}: {k} lines" for n, k in there.items() if k > 1]
    steps = Counter(line["step"] for line in lines if line["kind"] == "step")
    found.duplicates += [f"step {n} {said}: {k} lines" for n, k in steps.items() if k > 1]


def _audit_rows(record: StudyRecord, found: Findings) -> None:
    ours = TRIALS.c.study_id == record.study_id
    reports = sa.select(REPORTS.c.trial_id, REPORTS.c.step, sa.func.count()).join(
        TRIALS, TRIALS.c.trial_id == REPORTS.c.trial_id
    )
    leases = sa.select(TRIALS.c.number, LEASES.c.epoch).join_from(
        TRIALS, LEASES, TRIALS.c.trial_id == LEASES.c.trial_id, isouter=True
    )
    orphans = sa.select(LEASES.c.trial_id).where(
        LEASES.c.trial_id.not_in(sa.select(TRIALS.c.trial_id))
    )
    with record.database.engine.connect() as connection:
        grouped = reports.where(ours).group_by(REPORTS.c.trial_id, REPORTS.c.step)
        for trial_id, validation, count in connection.execute(grouped):
            if count > 1:
                found.duplicates.append(f"report {validation} of row {trial_id}: {count} times")
        for number, epoch in connection.execute(leases.where(ours)):
            if epoch is None or epoch < 1:
                found.lost.append(f"the lease of trial {number} has the epoch {epoch}")
        found.zombies += [f"a lease of no trial: {row}" for row in connection.execute(orphans)]


def _audit_files(
    record: StudyRecord, trials: list[TrialRecord], runs: Path, found: Findings
) -> None:
    store, best = CheckpointStore(runs), best_of(trials, record.spec)
    ranked = sorted(
        (trial for trial in trials if trial.state == "COMPLETE"),
        key=lambda t: (record.spec.sign * (t.value or 0.0), t.number),
    )
    winners = {t.number: t.best_step for t in ranked[: record.spec.keep_checkpoints]}
    for number, step in winners.items():
        assert step is not None
        try:
            store.at_step(number, step)
        except CheckpointError as error:
            found.lost.append(str(error))
    for number in store.trials():
        useless = set(store.steps(number)) - {winners.get(number)}
        found.zombies += [f"the checkpoint {number}/{step} cannot win" for step in useless]
    hidden = (*runs.glob(".*"), *runs.glob("*/.*"))
    found.zombies += [f"{path.relative_to(runs)} is left" for path in hidden]
    if best is not None:
        _audit_best(best, store, runs / "best", found)


def _audit_best(best: TrialRecord, store: CheckpointStore, folder: Path, found: Findings) -> None:
    assert best.best_step is not None
    try:
        handed_over = json.loads((folder / TRIAL_FILE).read_text())
        there = (handed_over["number"], handed_over["step"], handed_over["value"])
        if there != (best.number, best.best_step, best.value):
            found.lost.append(f"best/ is {there}, not trial {best.number}: {best.value}")
        checkpoint = store.at_step(best.number, best.best_step)
        if contents(folder / ADAPTER_FOLDER) != contents(checkpoint.adapter):
            found.lost.append("best/adapter is not the checkpoint's")
    except (OSError, ValueError, KeyError, CheckpointError) as error:
        found.lost.append(f"best/ cannot be read: {error!r}")


def contents(folder: Path) -> dict[str, bytes]:
    """Return a folder's files by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def final_study(record: StudyRecord, runs: Path) -> dict[str, object]:
    """Return all that one worker decides: equal, whoever was killed on the way."""
    store = CheckpointStore(runs)
    best = json.loads((runs / "best" / TRIAL_FILE).read_text())
    told = {key: best[key] for key in ("number", "step", "metric", "value", "params", "history")}
    return {
        "trials": [_without_folder(row) for row in picture(record)],
        "messages": [(trial.message, trial.notes) for trial in record.trials()],
        "best": told,
        "adapter": contents(runs / "best" / ADAPTER_FOLDER),
        "kept": {
            f"{number}/{step}": contents(store.at_step(number, step).adapter)
            for number in store.trials()
            for step in store.steps(number)
        },
    }


def _without_folder(row: tuple[object, ...]) -> tuple[object, ...]:
    """Return a trial without the name of its journal, which lies elsewhere in each case."""
    return tuple(
        {k: v for k, v in cell.items() if k != "journal"} if isinstance(cell, dict) else cell
        for cell in row
    )
