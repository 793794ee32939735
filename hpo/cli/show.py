"""The verbs that look: status, best, list, logs. They change nothing, and may be used any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from hpo import trial_log
from hpo.checkpoints import CheckpointStore
from hpo.cli.console import print_json, stderr, stdout
from hpo.cli.target import JsonOption, StorageOption, StudyArgument, find_storage, find_target
from hpo.errors import SpecError, StudyError
from hpo.result import config_yaml
from hpo.storage.summary import Ended
from hpo.studies import list_studies
from hpo.tables import (
    MAX_ROWS,
    as_json,
    counted,
    in_words,
    samples_table,
    shown,
    studies_table,
    trials_table,
)


def status(
    study: StudyArgument,
    storage: StorageOption = None,
    json: JsonOption = False,
    all_: Annotated[bool, typer.Option("--all", help="Every trial, not the last ones.")] = False,
) -> None:
    """Show a study's trials, which one leads, and why the failed ones failed."""
    record = find_target(study, storage).open()
    best, counts = record.best(), record.summary.counts()
    if json:
        print_json(
            {
                "study": record.name,
                "asked": record.spec.budget.trials,
                "counts": counts,
                "best": None if best is None else best.number,
                "trials": [as_json(trial) for trial in record.trials()],
            }
        )
        return
    num_trials = sum(counts.values())
    trials = record.trials(None if all_ else record.summary.latest(MAX_ROWS))
    title = f"{record.name}: {num_trials} of {record.spec.budget.trials} trials, {counted(counts)}"
    stdout.print(trials_table(trials, record.spec, best, num_trials, title))
    _tell_causes([end for end in record.summary.ends() if end.message], record.name, all_)
    for note in record.summary.notes():
        stdout.print(f"note: {note}", markup=False, soft_wrap=True)


def _tell_causes(ends: Sequence[Ended], study: str, all_: bool) -> None:
    """Say why trials failed, diverged or found no room, in one line each."""
    shown_ends = ends if all_ else ends[-MAX_ROWS:]
    for end in shown_ends:
        last_line = (end.message or "").strip().splitlines()[-1]
        stdout.print(
            f"trial {end.number} {in_words(end.reason)}: {last_line}", markup=False, soft_wrap=True
        )
    if len(ends) > len(shown_ends):
        hidden = len(ends) - len(shown_ends)
        stdout.print(f"{hidden} more have a cause: hpo status {study} --all", soft_wrap=True)


def best(study: StudyArgument, storage: StorageOption = None, json: JsonOption = False) -> None:
    """Show the best config, as YAML that `hpo train` takes, and where its adapter lies."""
    record = find_target(study, storage).open()
    found = record.best()
    if found is None:
        full = sum(end.reason == "out_of_memory" for end in record.summary.ends())
        why = f" {full} of its trials fitted on no device (out of memory)." if full else ""
        raise StudyError(
            f"the study {record.name!r} has no completed trial yet.{why} See: hpo status "
            f"{record.name}"
        )
    store = CheckpointStore.of_study(record.spec.output_dir, record.name)
    if json:
        print_json({**as_json(found), "folder": store.shown("best")})
        return
    config_file = store.shown("best", "config.yaml")
    again = (
        f"train it again: hpo train {config_file}"
        if store.is_local
        else f"fetch it: hpo export {record.name}"
    )
    heading = (
        f"trial {found.number} of {record.name}: {record.spec.metric} {shown(found.value)} at step "
        f"{found.best_step}\nadapter: {store.shown('best', 'adapter')}\n{again}"
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
    samples: Annotated[
        bool, typer.Option("--samples", help="What the model answered, validation by validation.")
    ] = False,
    validation: Annotated[
        int | None, typer.Option(min=1, help="With --samples: of this validation alone.")
    ] = None,
) -> None:
    """Show a trial's steps and validations: loss, learning rate, gradient norm, and its end.

    --samples shows how its answers to the same prompts change.
    """
    if validation is not None and not samples:
        raise SpecError("--validation goes with --samples.")
    record = find_target(study, storage).open()
    num_trials = record.num_trials()
    if trial >= num_trials:
        raise StudyError(
            f"the study {record.name!r} has no trial {trial}; it has {num_trials}, from 0."
        )
    (said,) = record.trials([trial])
    store = CheckpointStore.of_study(record.spec.output_dir, record.name)
    folder = store.log_folder(trial)
    if samples:
        _show_samples(trial_log.read_samples(folder), trial, validation, json)
        return
    found = trial_log.read(folder)
    if json:
        print_json(found[-lines:])
        return
    for line in found[-lines:]:
        stdout.print(_spoken(line), markup=False, highlight=False, soft_wrap=True)
    if said.message:
        stdout.print(said.message, markup=False, highlight=False, soft_wrap=True)
    if not found:
        stderr.print(
            f"the log of trial {trial} is empty: no validation yet ({store.shown(str(trial))})."
        )


def _show_samples(
    found: Sequence[Mapping[str, object]], trial: int, validation: int | None, as_json_: bool
) -> None:
    there = sorted({int(str(sample["validation"])) for sample in found})
    if validation is not None and there and validation not in there:
        raise StudyError(
            f"trial {trial} has no samples of validation {validation}; it has them of "
            f"{', '.join(map(str, there))}."
        )
    wanted = [s for s in found if validation is None or s["validation"] == validation]
    if as_json_:
        print_json(wanted)
    elif wanted:
        stdout.print(samples_table(wanted))
    else:
        stderr.print(
            f"trial {trial} has no samples: its trainer generates none, or it has no validation yet."
        )


def _spoken(line: dict[str, object]) -> str:
    kind = str(line.get("kind", ""))
    output = str(line.get("output", ""))  # of a process that was lost
    rest = [f"{key} {shown(value)}" for key, value in line.items() if key not in ("kind", "output")]
    return f"{kind:<10} " + "  ".join(rest) + "".join(f"\n  | {x}" for x in output.splitlines())
