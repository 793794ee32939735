"""The verbs that look: status, best, list, logs. They change nothing, and may be used any time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from hpo import trial_log
from hpo.cli.console import print_json, stderr, stdout
from hpo.cli.target import JsonOption, StorageOption, StudyArgument, find_storage, find_target
from hpo.errors import StudyError
from hpo.result import config_yaml
from hpo.studies import best_of, list_studies
from hpo.tables import MAX_ROWS, as_json, counted, shown, studies_table, trials_table


def status(
    study: StudyArgument,
    storage: StorageOption = None,
    json: JsonOption = False,
    all_: Annotated[bool, typer.Option("--all", help="Every trial, not the last ones.")] = False,
) -> None:
    """Show a study's trials, which one leads, and why the failed ones failed."""
    record = find_target(study, storage).open()
    trials = record.trials()
    best = best_of(trials, record.spec)
    counts = Counter(trial.state for trial in trials)
    if json:
        print_json(
            {
                "study": record.name,
                "asked": record.spec.budget.trials,
                "counts": dict(counts),
                "best": None if best is None else best.number,
                "trials": [as_json(trial) for trial in trials],
            }
        )
        return
    title = f"{record.name}: {len(trials)} of {record.spec.budget.trials} trials, {counted(counts)}"
    limit = len(trials) if all_ else MAX_ROWS
    stdout.print(trials_table(trials, record.spec, best, title, limit))
    for trial in trials:
        if trial.message:
            stdout.print(
                f"trial {trial.number} {trial.reason}: {trial.message.strip().splitlines()[-1]}",
                markup=False,
                soft_wrap=True,
            )


def best(study: StudyArgument, storage: StorageOption = None, json: JsonOption = False) -> None:
    """Show the best config, as YAML that `hpo train` takes, and where its adapter lies."""
    record = find_target(study, storage).open()
    found = record.best()
    if found is None:
        raise StudyError(
            f"the study {record.name!r} has no completed trial yet. See: hpo status {record.name}"
        )
    folder = Path(record.spec.output_dir) / record.name / "best"
    if json:
        print_json({**as_json(found), "folder": str(folder)})
        return
    heading = (
        f"trial {found.number} of {record.name}: {record.spec.metric} {shown(found.value)} at step "
        f"{found.best_step}\nadapter: {folder / 'adapter'}\n"
        f"train it again: hpo train {folder / 'config.yaml'}"
    )
    spec = record.spec
    head = {"trainer": spec.trainer, "metric": spec.metric, "direction": spec.direction}
    config = {**head, **found.config}
    stdout.print(
        config_yaml(config, heading), end="", markup=False, highlight=False, soft_wrap=True
    )


def list_(storage: StorageOption = None, json: JsonOption = False) -> None:
    """List the studies of a database."""
    url = find_storage(storage, None)
    studies = list_studies(url)
    if json:
        print_json([{"study": s.name, "trials": s.num_trials, **s.counts} for s in studies])
    elif studies:
        stdout.print(studies_table(studies))
    else:
        stderr.print("no studies here yet. To make one: hpo run FILE --trials 40")


def logs(
    study: StudyArgument,
    trial: Annotated[int, typer.Argument(help="The trial's number.", min=0)],
    storage: StorageOption = None,
    json: JsonOption = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="The last so many.")] = 50,
) -> None:
    """Show a trial's steps and validations: loss, learning rate, gradient norm, and its end."""
    record = find_target(study, storage).open()
    trials = record.trials()
    if trial >= len(trials):
        raise StudyError(
            f"the study {record.name!r} has no trial {trial}; it has {len(trials)}, from 0."
        )
    folder = Path(record.spec.output_dir) / record.name / str(trial)
    found = trial_log.read(folder)
    if json:
        print_json(found[-lines:])
        return
    for line in found[-lines:]:
        stdout.print(_spoken(line), markup=False, highlight=False, soft_wrap=True)
    if trials[trial].message:
        stdout.print(trials[trial].message, markup=False, highlight=False, soft_wrap=True)
    if not found:
        stderr.print(f"the log of trial {trial} is empty: no validation yet ({folder}).")


def _spoken(line: dict[str, object]) -> str:
    kind = str(line.get("kind", ""))
    rest = [f"{key} {shown(value)}" for key, value in line.items() if key != "kind"]
    return f"{kind:<10} " + "  ".join(rest)
