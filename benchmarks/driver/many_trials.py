"""Makes a study large without training: the rows of its finished trials, again under new numbers.

What is copied was written by `hpo` itself, so a large study has the rows that it would have had; values
and digests are made different, as they would be.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from hpo.errors import ExhaustedError
from hpo.spec import StudySpec
from hpo.storage.attributes import DIGEST
from hpo.storage.leases import LEASES
from hpo.storage.stored_trials import (
    ATTRIBUTES,
    PARAMS,
    REPORTS,
    TRIALS,
    USER_ATTRIBUTES,
    VALUES,
)
from hpo.studies import StudyRecord, create_study
from hpo.study import Study
from trainers.protocol import ADAPTER_FOLDER, STATE_FOLDER, Report

NUM_REPORTS = 10
NUM_REAL = 20
SPACE = {
    "learning_rate": {"type": "float", "low": 2.0e-5, "high": 2.0e-3, "log": True},
    "lora_r": {"type": "int", "low": 4, "high": 64, "step": 4},
    "lora_alpha": {"value": "2 * lora_r"},
    "lora_dropout": {"type": "float", "low": 0.0, "high": 0.2},
    "weight_decay": {"type": "float", "low": 0.0, "high": 0.1},
    "warmup_steps": {"type": "int", "low": 0, "high": 50},
    "per_device_train_batch_size": {"type": "categorical", "choices": [1, 2, 4, 8]},
    "lr_scheduler_type": {"type": "categorical", "choices": ["linear", "cosine", "constant"]},
}


def study_of(folder: Path, sampler: str, pruner: str = "asha") -> StudySpec:
    """Return a study of a usual size: eight options, ten validations a trial."""
    return StudySpec.model_validate(
        {
            "study": "large",
            "output_dir": str(folder / "runs"),
            "fixed": {"model_name_or_path": "m", "train_file": "t.jsonl", "max_steps": 100},
            "space": SPACE,
            "sampler": {"type": sampler},
            "pruner": {"type": pruner},
        }
    )


def large_study(spec: StudySpec, url: str, num_trials: int) -> StudyRecord:
    """Return a new study with so many finished trials, of which the first ones really were told."""
    record = create_study(spec, url)
    study = Study(record, NUM_REAL)
    while True:
        try:
            claim = study.next_trial()
        except ExhaustedError:
            break
        assert claim is not None
        finish(study, claim.number)
    study.close()
    for first in range(NUM_REAL, num_trials, NUM_REAL):
        _copy(record, first, min(NUM_REAL, num_trials - first))
    return record


def finish(study: Study, number: int) -> None:
    """Report a trial's ten validations with their checkpoints; losses depend on its number alone."""
    history: list[Report] = []
    for validation in range(1, NUM_REPORTS + 1):
        history.append(report_of(number, validation))
        study.store.write(number, 10 * validation, history, True, save_empty)
        if study.report(number, history[-1]):
            return


def save_empty(folder: Path) -> None:
    """Write what a trainer writes of a trial, as small as can be."""
    for name in (ADAPTER_FOLDER, STATE_FOLDER):
        (folder / name).mkdir()
        (folder / name / "state.json").write_text("{}")


def report_of(number: int, validation: int) -> Report:
    """Return a validation as the trainer makes it; the first one has notes."""
    loss = 3.0 - 0.1 * validation + (number * 37 % 100) / 1000
    metrics = {"eval_loss": loss, "eval_perplexity": 2.718**loss, "eval_token_accuracy": 0.4}
    return Report(
        number,
        validation,
        10 * validation,
        metrics,
        notes=["3 rows were cut to max_length"] if validation == 1 else [],
        end="finished" if validation == NUM_REPORTS else None,
    )


def _copy(record: StudyRecord, first: int, count: int) -> None:
    """Copy the first ``count`` trials to the numbers from ``first`` on."""
    with record.database.engine.begin() as connection:
        sources = connection.execute(
            sa.select(TRIALS)
            .where(TRIALS.c.study_id == record.study_id, TRIALS.c.number < count)
            .order_by(TRIALS.c.number)
        ).all()
        trials = [
            {
                **{key: value for key, value in row._mapping.items() if key != "trial_id"},
                "number": first + row.number,
            }
            for row in sources
        ]
        connection.execute(TRIALS.insert(), trials)
        made = connection.execute(
            sa.select(TRIALS.c.trial_id, TRIALS.c.number).where(
                TRIALS.c.study_id == record.study_id, TRIALS.c.number >= first
            )
        ).all()
        new_id = {sources[number - first].trial_id: trial_id for trial_id, number in made}
        for table in (PARAMS, ATTRIBUTES, USER_ATTRIBUTES, VALUES, REPORTS, LEASES):
            _copy_rows(connection, table, new_id, first)


def _copy_rows(
    connection: sa.Connection, table: sa.Table, new_id: dict[int, int], first: int
) -> None:
    own_key = [column.name for column in table.primary_key if column.name != "trial_id"]
    found = connection.execute(table.select().where(table.c.trial_id.in_(list(new_id))))
    rows = []
    for row in found.mappings():
        copy = {key: value for key, value in row.items() if key not in own_key}
        copy["trial_id"] = new_id[row["trial_id"]]
        for name in ("value", "intermediate_value"):
            if copy.get(name) is not None:
                copy[name] += 1e-7 * first
        if copy.get("key") == DIGEST:
            copy["value_json"] = f'"{copy["trial_id"]:032x}"'
        rows.append(copy)
    if rows:
        connection.execute(table.insert(), rows)
