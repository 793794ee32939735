"""The verbs around a search: validate, dashboard, export, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpo.cli.console import print_json, stderr, stdout
from hpo.cli.target import JsonOption, StorageOption, StudyArgument, find_storage, find_target
from hpo.errors import StudyError, TrainerError


def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The study's YAML file.")],
    json: JsonOption = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Check the file alone; load no model and no data.")
    ] = False,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="As for `hpo run`: for the cost.")
    ] = None,
) -> None:
    """Check everything without training: the file, the space, the data, the model, and the cost.

    Takes two steps with one config to see how long a step lasts, and throws them away.
    """
    from hpo.preview import preview
    from hpo.spec_file import read_spec_file
    from hpo.store.address import check_usable
    from hpo.trackers import check_installed

    read = read_spec_file(file)
    check_installed(read.spec.report_to)
    check_usable(read.spec.output_dir)
    found = preview(read.spec, trials, load=not quick)
    if json:
        print_json(found)
        return
    width = max(map(len, found))
    for name, value in found.items():
        stdout.print(f"{name:<{width}}  {value}", markup=False, highlight=False, soft_wrap=True)
    stderr.print(f"the file is good. To run it: hpo run {file}")


def dashboard(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study's name, or its YAML file.")
    ] = None,
    storage: StorageOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen.")] = 8080,
    host: Annotated[
        str, typer.Option(help="The address to listen on; the default is this machine alone.")
    ] = "127.0.0.1",
) -> None:
    """Show studies in the browser with optuna-dashboard: curves, importances, every trial."""
    from hpo.dashboard import serve

    if study is None:
        url, study_id = find_storage(storage, None), None
    else:
        target = find_target(study, storage)
        url, study_id = target.storage, target.open().study_id
    serve(
        url,
        study_id,
        host,
        port,
        lambda address: stderr.print(f"dashboard: {address}  (Ctrl-C ends it)", soft_wrap=True),
        lambda text: stderr.print(f"[yellow]warning:[/yellow] {text}", soft_wrap=True),
    )


def export(
    study: StudyArgument,
    storage: StorageOption = None,
    trial: Annotated[
        int | None,
        typer.Option(min=0, help="Another trial than the best; its checkpoint must be kept."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A new folder; default: export/STUDY.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Full weights too: base model and adapter in one.")
    ] = False,
) -> None:
    """Copy the best adapter with its config, or make full weights of it with --merge."""
    from hpo.checkpoints import CheckpointStore
    from hpo.lookup import find_trainer
    from hpo.result import write_result
    from trainers.protocol import ADAPTER_FOLDER

    record = find_target(study, storage).open()
    trials = record.trials()
    if trial is not None and trial >= len(trials):
        raise StudyError(f"the study {record.name!r} has no trial {trial}; it has {len(trials)}.")
    chosen = record.best() if trial is None else trials[trial]
    if chosen is None or chosen.best_step is None:
        raise StudyError(
            f"there is no {'completed trial' if trial is None else 'validation of this trial'} to "
            f"export yet. See: hpo status {record.name}"
        )
    target = (out or Path("export") / record.name).resolve()
    if target.exists():
        raise StudyError(f"{target} exists. Give another folder with --out, or remove it.")
    store = CheckpointStore.of_study(record.spec.output_dir, record.name)
    if chosen.best_step not in store.steps(chosen.number):
        there = store.listing()
        kept = [t.number for t in trials if t.best_step in there.get(t.number, [])]
        raise StudyError(
            f"the checkpoint of trial {chosen.number} was deleted, since it could not win. Kept are "
            f"the trials {', '.join(map(str, kept)) or 'none'}; 'keep_checkpoints:' keeps more."
        )
    checkpoint = store.at_step(chosen.number, chosen.best_step)
    write_result(target, record.spec, chosen, checkpoint)
    stdout.print(f"adapter: {target / ADAPTER_FOLDER}", soft_wrap=True)
    if merge:
        try:
            find_trainer(record.spec.trainer).merge(
                chosen.config, target / ADAPTER_FOLDER, target / "merged"
            )
        except ValueError as error:
            raise TrainerError(str(error)) from error
        stdout.print(f"full weights: {target / 'merged'}", soft_wrap=True)


def schema() -> None:
    """Print the JSON Schema of a study's file, for completion and checks in editors.

    Save it and name it in the file's first line: # yaml-language-server: $schema=hpo.schema.json
    """
    from hpo.json_schema import file_schema

    print_json(file_schema())
