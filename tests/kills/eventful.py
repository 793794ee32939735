"""A study in which everything happens, lived in processes that are killed for real.

Trials finish, are pruned, diverge, fail, run out of memory, are handed back in mid-trial and find
their checkpoint torn; the best validation is not the last. A child is forked from a process that has
everything imported and holds no connection, so a life costs little more than its work.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from hpo import faults
from hpo.errors import NoDatabaseError, StudyError
from hpo.spec import StudySpec
from hpo.storage.leases import DRIVERS, LEASES
from hpo.storage.stored_trials import TRIALS
from hpo.studies import create_study, open_study
from hpo.study import Study
from tests.kills.audit import Journal, opened
from tests.one_worker import Worker, make_spec

NUM_TRIALS = 10
ENDS = frozenset({"finished", "pruned", "diverged", "failed", "out_of_memory"})
PAUSES = {0: 5, 5: 1, 8: 1}
TEARS = {0: 4, 4: 2, 7: 2}
POINTS = tuple(point for point in faults.POINTS if point != "joined")  # that one is the cluster's

_FIRST = {"x": 0.0, "y": 1, "kind": "a", "overfit": 0.04, "size": 1.0, "hidden_size": 0.1}
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__, "optuna.samplers", "psycopg", "scipy.special"])


def eventful_spec(folder: Path, study: str) -> StudySpec:
    """Return the study's spec."""
    return make_spec(
        folder,
        study=study,
        fixed={
            "max_steps": 9,
            "eval_steps": 2,
            "fail_above": 0.8,
            "diverge_above": 0.9,
            "memory": 1.9,
            "hidden_until": 3,  # runs out of memory when it has a checkpoint
            "journal": str(folder / "journal.jsonl"),
        },
        space={
            "x": {"type": "float", "low": -1.0, "high": 1.0},
            "y": {"type": "int", "low": 1, "high": 4},
            "kind": {"type": "categorical", "choices": ["a", "b"]},
            "overfit": {"type": "float", "low": 0.02, "high": 0.08},
            "size": {"type": "float", "low": 0.5, "high": 1.0},
            "hidden_size": {"type": "float", "low": 0.0, "high": 1.0},
        },
        enqueue=[
            _FIRST,
            {**_FIRST, "x": 0.85},  # fails
            {**_FIRST, "x": 0.95},  # diverges
            {**_FIRST, "hidden_size": 1.0},  # is out of memory
            {**_FIRST, "x": 0.15},  # each better than those before: `best/` is replaced
            {**_FIRST, "x": 0.25},
            {**_FIRST, "x": 0.3},
        ],
        sampler={"type": "tpe", "seed": 1, "n_startup_trials": 2},
        pruner={"type": "asha", "min_resource": 1, "reduction_factor": 2},
        keep_checkpoints=2,
        lease_s=1,
    )


@dataclass
class Case:
    """One study and the processes that it outlives.

    Attributes:
        folder: Of its own.
        url: Of a database that other cases may share.
        study: Its name there.
        kills: Where each process died, in order.
    """

    folder: Path
    url: str
    study: str
    kills: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.folder / "journal.jsonl")

    @property
    def runs(self) -> Path:
        """The study's folder."""
        return self.folder / "runs" / self.study

    def live(self, armed: str = "", points: Path | None = None) -> bool:
        """Let one process go on with the study; return whether it was killed.

        Args:
            armed: As in ``faults.arm``.
            points: Where every point is written that the process reaches, in order.
        """
        life = _PROCESSES.Process(
            target=_live, args=(self.folder, self.url, self.study, armed, points)
        )
        life.start()
        life.join(60)
        assert life.exitcode is not None, f"{armed}: the process does not end"
        assert life.exitcode in (0, -signal.SIGKILL), f"{armed}: exit code {life.exitcode}"
        killed = life.exitcode != 0
        life.close()
        if killed:
            self.kills.append(armed)
            self._let_time_pass()
        return killed

    def killed_at(self, faults_in_order: Sequence[tuple[str, int]]) -> None:
        """Kill process after process, then let one end the study. The first must be struck."""
        for index, (point, at) in enumerate(faults_in_order):
            if not self.live(f"{point}=kill@{at}"):
                assert index > 0, f"{point} is not reached {at} times"
                return
        assert not self.live()

    def _let_time_pass(self) -> None:
        """Remember what a kill left, let every lease run out, and let leftovers grow old."""
        with opened(self.study, self.url) as record:
            self.journal.note_kill(self.runs, record)
            ids = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == record.study_id)
            ours = DRIVERS.c.study_id == record.study_id
            with record.database.engine.begin() as connection:
                connection.execute(
                    LEASES.update().where(LEASES.c.trial_id.in_(ids)).values(expires_at=0.0)
                )
                connection.execute(DRIVERS.update().where(ours).values(expires_at=0.0))
        for path in (*self.runs.glob(".*"), *self.runs.glob("*/.*")):
            os.utime(path, (0.0, 0.0))


def _live(folder: Path, url: str, study: str, armed: str, points: Path | None) -> None:
    """Work on the study to its end: what a process does, up to its death."""
    reached: list[str] = []
    if points is not None:
        faults.reached = reached.append
    else:
        faults.arm(armed)
    try:
        record = open_study(study, url)
    except (NoDatabaseError, StudyError):
        record = create_study(eventful_spec(folder, study), url)
    Worker(Study(record, NUM_TRIALS), PAUSES, TEARS).work()
    if points is not None:
        points.write_text(json.dumps(reached))
